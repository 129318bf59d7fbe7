"""Commands of the documents.

In a page, a fence ```sh holds commands, any other fence something to read. A comment in the line
before says what is special about them:
    <!-- commands: full -->              run in ./check --full alone
    <!-- commands: skip, REASON -->      not run by any test, for that reason

doc_commands.py script PAGE full|quick   prints a script of the page's commands, in order; on
                                         stderr the blocks that are left out, each with its reason
doc_commands.py check SWITCHYARD PAGE... holds everything in the pages that calls the program, run
                                         or not, in fences or in the text, against its own help:
                                         commands, options, config keys, files of configs/
"""
import os
import re
import subprocess
import sys

MARK = re.compile(r"^<!-- commands: (full|skip, (?P<why>\S.*)) -->$")
COMMAND = re.compile(r"^(\w+=\S+ )*(switchyard|build/|mpirun|srun|sbatch|cmake|ctest|bash|scripts/|\./|tests/)")


class Block:
    def __init__(self, page, line, language, mark):
        self.page, self.line, self.language, self.mark, self.lines = page, line, language, mark, []

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks(page):
    """All fences of a page; what is outside of them has language None."""
    block, mark = Block(page, 1, None, ""), ""
    for number, line in enumerate(open(page, encoding="utf-8").read().split("\n"), 1):
        fence = line.startswith("```")
        if fence:
            if block.language is None:
                yield block
                block = Block(page, number, line[3:], mark)
            else:
                yield block
                block = Block(page, number + 1, None, "")
        else:
            block.lines.append(line)
        mark = line if line.startswith("<!-- commands:") else ""
    yield block


def script(page, full):
    print("set -euo pipefail")
    for block in blocks(page):
        if block.language != "sh":
            continue
        mark = MARK.match(block.mark)
        if mark and mark["why"]:
            print(f"skipped: {block}: {mark['why']}", file=sys.stderr)
        elif mark and not full:
            print(f"skipped: {block}: only in ./check --full", file=sys.stderr)
        else:
            print(f"echo 'commands at {block}' >&2")
            print("\n".join(block.lines))


class Program:
    """What the program says of itself."""

    def __init__(self, path):
        self.path, self.helps = path, {}
        self.commands = re.findall(r"^  ([a-z]+) ", self.ask("--help"), re.M)
        self.keys = set(re.findall(r"^([a-z]+\.[a-z0-9_.]+)", self.ask("--help-keys"), re.M))
        self.sections = {key.split(".")[0] for key in self.keys}

    def ask(self, *words):
        if words not in self.helps:
            done = subprocess.run([self.path, *words], capture_output=True, text=True)
            self.helps[words] = done.stdout if done.returncode == 0 else ""
        return self.helps[words]

    def options(self, command, word):
        text = self.ask(command, "--help") + (self.ask(command, word, "--help") if word.isalnum() or "-" in word else "")
        return set(re.findall(r"--[a-z0-9][a-z0-9-]*", text)) | {"--help"}


def problems_of_call(program, text):
    """text: what stands behind the program's name, up to the end of the command."""
    words = text.split()
    if not words or not re.fullmatch(r"[a-z]+", words[0]):
        return [] if not words or words[0] in ("--help", "--help-keys", "--version") or words[0][0] != "-" else [words[0]]
    if words[0] not in program.commands:
        return [f"no command '{words[0]}'"]
    known = program.options(words[0], words[1] if len(words) > 1 and words[1][0] != "-" else "")
    return [f"{words[0]} has no option {word}" for word in re.findall(r"(?<!\S)(--[a-z0-9][a-z0-9-]*)", text) if word not in known]


def problems_of_text(program, text):
    found = []
    for call in re.findall(r"(?<!--target)(?:^|[\s/`'$])switchyard ((?:[^`\n|&;>#]|\\\|)*)", text, re.M):
        found += problems_of_call(program, call.split("  ")[0] if "  " in call else call)
    for key in re.findall(r"(?<![\w/.-])([a-z]+\.[a-z][a-z0-9_.]*)(?==|: )", text):
        if key.split(".")[0] in program.sections and key not in program.keys:
            if not any(known.startswith(key + ".") for known in program.keys):
                found.append(f"no key {key}")
    for name in re.findall(r"(?<![\w/])configs/[\w/.-]+\.(?:yaml|sbatch)", text):
        if not os.path.exists(name):
            found.append(f"no file {name}")
    return found


def check(switchyard, pages):
    program, problems, calls = Program(switchyard), [], 0
    for page in pages:
        for block in blocks(page):
            if block.mark and not MARK.match(block.mark):
                problems.append(f"{block}: '{block.mark}': a mark is 'commands: full' or 'commands: skip, REASON'")
            if block.mark and block.language != "sh":
                problems.append(f"{block}: a mark belongs before a fence of sh")
            if block.language is None:
                for number, line in enumerate(block.lines, block.line):
                    if line.startswith("    ") and COMMAND.match(line.strip()):
                        problems.append(f"{page}:{number}: commands belong into a fence of sh (tests/house/doc_commands.py)")
            elif block.language == "" and any(COMMAND.match(line) for line in block.lines):
                problems.append(f"{block}: commands in a fence without 'sh' (tests/house/doc_commands.py)")
            for number, line in enumerate(block.lines, block.line + (block.language is not None)):
                calls += "switchyard " in line
                problems += [f"{page}:{number}: {what}" for what in problems_of_text(program, line)]
    print("\n".join(problems) if problems else f"{calls} lines that call the program agree with its help")
    return bool(problems)


if __name__ == "__main__":
    if sys.argv[1] == "script":
        script(sys.argv[2], sys.argv[3] == "full")
    else:
        sys.exit(check(sys.argv[2], sys.argv[3:]))
