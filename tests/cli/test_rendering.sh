#!/usr/bin/env bash
# The report as a browser shows it, 400 and 1400 pixels wide, light, dark and printed: what read_report.py wants of the
# page, nothing beside the window, no text too small or across another, the colours of either scheme.
set -euo pipefail
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
[ -n "$browser" ] || { echo "skipped: no browser (apt-get install chromium)"; exit 77; }
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
make_data
make_config deepseek_v3
run=$work/run other=$work/other
for steps in 8 16; do
    expect_rc 0 "$binary" train "$work/tiny.yaml" "run.dir=$run" eval.every_steps=4 run.steps=$steps
done
expect_rc 0 "$binary" train "$work/tiny.yaml" "run.dir=$other" eval.every_steps=4 run.steps=16 optimizer.lr=1e-3 router.capacity_factor=1
expect_rc 0 "$binary" report "$run" "$other" --output "$work/page.html"

# browse ARGS... URL
browse() {
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --virtual-time-budget=2000 --hide-scrollbars \
        --allow-file-access-from-files --user-data-dir="$work/browser" "$@" 2>"$work/browser.log"
}

# A page that shows the report in a frame and says what it measured there.
cat >"$work/measure.html" <<'END'
<!DOCTYPE html><body style="margin:0"><iframe id="f" style="border:0;width:100vw;height:3000px" src="page.html"></iframe><script>
f.onload = () => {
  const d = f.contentDocument, box = e => e.getBoundingClientRect(), texts = [...d.querySelectorAll("svg text")];
  const across = [];
  for (const svg of d.querySelectorAll("svg")) {
    const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, box(t)]);
    boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
      if (p.left < q.right && q.left < p.right && p.top + 2 < q.bottom && q.top + 2 < p.bottom) across.push(a + " and " + b);
    }));
  }
  const outside = texts.filter(t => { const s = box(t.closest("svg")), b = box(t); return b.left < s.left - 1 || b.right > s.right + 1; });
  const said = {window: f.clientWidth, page: d.documentElement.scrollWidth, texts: texts.length,
    smallest: Math.min(...texts.map(t => parseFloat(f.contentWindow.getComputedStyle(t).fontSize) * box(t.closest("svg")).width / 440)),
    across, outside: outside.map(t => t.textContent)};
  document.body.textContent = "MEASURED" + JSON.stringify(said) + "END";
};
</script></body>
END
for width in 400 1400; do
    echo "$width pixels"
    browse --window-size=$width,2000 --dump-dom "file://$work/page.html" >"$work/dom.html" || fail "the browser failed at $width"
    expect_rc 0 python3 "$source_dir/tests/cli/read_report.py" "$work/dom.html" "$run" "$other"
    browse --window-size=$width,2000 --dump-dom "file://$work/measure.html" >"$work/measured.html" || fail "the browser failed at $width"
    expect_rc 0 python3 - "$work/measured.html" <<'PY'
import json, re, sys
said = json.loads(re.search("MEASURED(.*)END", open(sys.argv[1]).read()).group(1))
print(said)
assert said["texts"] > 100, said
assert said["page"] <= said["window"], said
assert said["smallest"] >= 9, said
assert not said["across"] and not said["outside"], said
PY
done

echo "light and dark"
for scheme in light dark; do
    browse --window-size=400,800 --blink-settings=preferredColorScheme=$([ $scheme = dark ] && echo 0 || echo 1) \
        --screenshot="$work/$scheme.png" "file://$work/page.html" || fail "no picture"
done
expect_rc 0 python3 - "$work/light.png" "$work/dark.png" <<'PY'
import struct, sys, zlib
def corner(path): # red, green, blue of the first pixel, which no filter changes
    data, at, packed = open(path, "rb").read(), 8, b""
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at:at + 4]), data[at + 4:at + 8]
        packed += data[at + 8:at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return tuple(zlib.decompress(packed)[1:4])
assert corner(sys.argv[1]) == (255, 255, 255), corner(sys.argv[1])
assert corner(sys.argv[2]) == (0x14, 0x18, 0x1d), corner(sys.argv[2])
PY

echo "printed"
browse --print-to-pdf="$work/page.pdf" "file://$work/page.html" || fail "not printed"
expect_rc 0 python3 - "$work/page.pdf" <<'PY'
import re, sys, zlib
data = open(sys.argv[1], "rb").read()
assert data.startswith(b"%PDF-")
pages = re.findall(rb"/Type\s*/Page\b[^s]", data)
drawn = []
for match in re.finditer(rb"stream\r?\n", data):
    try:
        drawn.append(zlib.decompressobj().decompress(data[match.end():]))
    except zlib.error:
        pass # the end of one
written = [stream for stream in drawn if b" Tf" in stream]
texts = sum(len(re.findall(rb"T[jJ]\b", stream)) for stream in written)
print(len(pages), "pages,", len(written), "with text,", texts, "texts")
assert 1 <= len(pages) <= 20 and len(written) >= len(pages) and texts > 100
PY
finish
