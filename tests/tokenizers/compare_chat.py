"""prepare on conversations against the published chat templates: compare_chat.py BINARY DEEPSEEK.json MISTRAL.model

The DeepSeek templates (tokenizer_config.json of DeepSeek-V2-Chat and of DeepSeek-V3) are rendered by jinja2 and encoded
by the tokenizers library, as Hugging Face does; Mixtral's ids are those of mistral_common. Masks are checked by decoding:
what counts is the answers and their ends, in order.
"""
import array, json, os, random, subprocess, sys, tempfile

import jinja2
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from tokenizers import Tokenizer

binary, deepseek, mistral = sys.argv[1:]

V2 = ("{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
      "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
      "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
      "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")
V3 = ("{% set ns = namespace(system_prompt='', is_first_sp=true) %}{%- for message in messages %}"
      "{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}"
      "{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}"
      "{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}"
      "{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}"
      "{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' %}"
      "{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}")
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

random.seed(5)
WORDS = "the Hello, where 42 is naïve (code) x=1; 北京 можно 🙂 don't\n new\n\nline  two \ttab end.".split(" ")


def say():
    return " ".join(random.choice(WORDS) for _ in range(random.randrange(1, 30))).strip() or "Hi"


def conversation(system):
    messages = [{"role": "system", "content": say()}] if system else []
    for _ in range(random.randrange(1, 5)):
        messages += [{"role": "user", "content": say()}, {"role": "assistant", "content": say()}]
    return messages


def prepare(folder, tokenizer, template, conversations):
    with open(f"{folder}/in.jsonl", "w") as out:
        for messages in conversations:
            out.write(json.dumps({"messages": messages}) + "\n")
    subprocess.run([binary, "prepare", "--tokenizer", tokenizer, "--chat-template", template, "--output", f"{folder}/o.h5",
                    f"{folder}/in.jsonl"], check=True, stdout=subprocess.DEVNULL)
    width = {"uint16": "H", "uint32": "I"}

    def read(name, kind):
        subprocess.run(["h5dump", "-d", f"/{name}", "-b", "LE", "-o", f"{folder}/raw", f"{folder}/o.h5"], check=True,
                       stdout=subprocess.DEVNULL)
        data = array.array(kind)
        data.frombytes(open(f"{folder}/raw", "rb").read())
        return data.tolist()

    offsets, mask = read("document_offsets", "q"), read("loss_mask", "B")
    bytes_each = os.path.getsize(f"{folder}/raw") and None
    subprocess.run(["h5dump", "-d", "/tokens", "-b", "LE", "-o", f"{folder}/raw", f"{folder}/o.h5"], check=True,
                   stdout=subprocess.DEVNULL)
    bytes_each = os.path.getsize(f"{folder}/raw") // offsets[-1]
    tokens = read("tokens", width["uint16" if bytes_each == 2 else "uint32"])
    return [(tokens[a:b], mask[a:b]) for a, b in zip(offsets, offsets[1:])]


def check(what, got, want, messages):
    if got != want:
        at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
        sys.exit(f"{what}: differ at {at}: {got[at:at + 8]} and {want[at:at + 8]}\n{messages}")


def counted(tokens, mask, eos):
    """The runs of ids that count, without the end of each."""
    runs, run = [], []
    for id, on in zip(tokens, mask):
        if on and id == eos:
            runs.append(run)
            run = []
        elif on:
            run.append(id)
    return runs


conversations = [conversation(system) for system in (True, False) for _ in range(150)]
with tempfile.TemporaryDirectory() as folder:
    hf = Tokenizer.from_file(deepseek)
    eos = hf.token_to_id(EOS)
    for name, text in (("deepseek_v2", V2), ("deepseek_v3", V3)):
        template = jinja2.Environment().from_string(text)
        for messages, (tokens, mask) in zip(conversations, prepare(folder, deepseek, name, conversations)):
            whole = template.render(messages=messages, bos_token=BOS, eos_token=EOS)
            check(name, tokens, hf.encode(whole, add_special_tokens=False).ids, messages)
            answers = [m["content"] for m in messages if m["role"] == "assistant"]
            space = " " if name == "deepseek_v2" else ""
            check(name + " mask", [hf.decode(run) for run in counted(tokens, mask, eos)], [space + a for a in answers], messages)
    reference = MistralTokenizer.from_file(mistral)
    classes = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
    for messages, (tokens, mask) in zip(conversations, prepare(folder, mistral, "mixtral", conversations)):
        # the library encodes what leads to an answer: it takes no conversation that ends with one
        request = ChatCompletionRequest(messages=[classes[m["role"]](content=m["content"]) for m in messages] +
                                        [UserMessage(content="?")])
        want = reference.encode_chat_completion(request).tokens
        check("mixtral", tokens, want[:len(tokens)], messages)
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        check("mixtral mask", [reference.decode(run) for run in counted(tokens, mask, 2)], answers, messages)
print(f"{len(conversations)} conversations in three templates: ids and masks as published")
