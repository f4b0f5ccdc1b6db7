"""Writes published_prompts.json: what published chat templates render for a few conversations.

    python -m tests.text.make_published FOLDER

FOLDER has the templates under the names that llama.cpp gives them (models/templates/); needs jinja2.
"""

import json
import pathlib
import sys

OUT = pathlib.Path(__file__).parent / "published_prompts.json"
USER, SYSTEM = {"role": "user", "content": "What is 1+1?"}, {"role": "system", "content": "Be brief."}
SAID, MORE = {"role": "assistant", "content": "It is 2."}, {"role": "user", "content": "And 2+2?"}
CONVERSATIONS = {
    "question": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, SAID, MORE],
    "system_turns": [SYSTEM, USER, SAID, MORE, SAID, MORE],
}
LLAMA_DATE = {"date_string": "26 Jul 2024"}
# Chat format, template, what the template is given.
CASES = {
    "harmony": ("harmony", "openai-gpt-oss-120b", {}),
    "harmony_high": ("harmony", "openai-gpt-oss-120b", {"reasoning_effort": "high"}),
    "gemma2": ("gemma2", "google-gemma-2-2b-it", {"bos_token": "<bos>"}),
    "llama31": ("llama3", "meta-llama-Llama-3.1-8B-Instruct", {"bos_token": "<|begin_of_text|>"}),
    "llama32": ("llama3", "meta-llama-Llama-3.2-3B-Instruct", {"bos_token": "<|begin_of_text|>", **LLAMA_DATE}),
    "llama33": ("llama3", "meta-llama-Llama-3.3-70B-Instruct", {"bos_token": "<|begin_of_text|>"}),
    "phi3": ("phi3", "microsoft-Phi-3.5-mini-instruct", {}),
    "phi4_mini": ("phi4_mini", "llama-cpp-microsoft-Phi-4-mini-instruct", {}),
    "smollm3": ("smollm3", "HuggingFaceTB-SmolLM3-3B", {}),
    "ministral3": (
        "ministral3",
        "mistralai-Ministral-3-14B-Reasoning-2512",
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "r1": ("think_r1", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", {"bos_token": "<｜begin▁of▁sentence｜>"}),
    "deepseek_v3": (
        "deepseek_v3",
        "deepseek-ai-DeepSeek-V3.1",
        {"bos_token": "<｜begin▁of▁sentence｜>", "thinking": True},
    ),
}


def main(folder: pathlib.Path) -> None:
    """Renders and writes."""
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    found = {}
    for case, (name, template, values) in CASES.items():
        render = environment.from_string((folder / f"{template}.jinja").read_text()).render
        found[case] = {"format": name, "effort": values.get("reasoning_effort", ""), "prompts": {}}
        for conversation, messages in CONVERSATIONS.items():
            try:
                text = render(messages=messages, add_generation_prompt=True, **values)
            except jinja2.TemplateError as error:
                text = f"refused: {error}"
            found[case]["prompts"][conversation] = text
    OUT.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
