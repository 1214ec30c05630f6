"""What FastChat sends a judge of MT-Bench, and what it reads out of the judge's text.

    python test/reference/fastchat_judge.py FASTCHAT

FASTCHAT is a checkout of github.com/lm-sys/FastChat (0e6d3e4b). Its own run_judge_single and run_judge_pair run; only
the call to the judge is replaced by one that writes the messages down. Writes test/fixtures/judge/fastchat.json.
"""

import json
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
checkout = Path(sys.argv[1])
sys.path.insert(0, str(checkout))

# Clients of services, and a module that needs every model library: none is used here.
for name in ("openai", "anthropic"):
    sys.modules[name] = types.ModuleType(name)
from fastchat.conversation import get_conv_template  # noqa: E402

adapter = types.ModuleType("fastchat.model.model_adapter")
adapter.get_conversation_template = lambda model: get_conv_template("chatgpt")  # what ChatGPTAdapter gives for gpt-4
adapter.OPENAI_MODEL_LIST = ("gpt-4",)
adapter.ANTHROPIC_MODEL_LIST = ()
model = types.ModuleType("fastchat.model")
model.__path__ = []
sys.modules["fastchat.model"] = model
sys.modules["fastchat.model.model_adapter"] = adapter
from fastchat.llm_judge import common  # noqa: E402

seen = {}


def answer(text):
    def completion(model, conv, temperature, max_tokens, api_dict=None):
        seen.update(messages=conv.to_openai_api_messages(), temperature=temperature, max_tokens=max_tokens)
        return text

    common.chat_completion_openai = completion


data = checkout / "fastchat/llm_judge/data"
prompts = common.load_judge_prompts(data / "judge_prompts.jsonl")
questions = {q["question_id"]: q for q in common.load_questions(data / "mt_bench/question.jsonl", None, None)}
references = common.load_model_answers(data / "mt_bench/reference_answer")["gpt-4"]


def turns(*texts):
    return {"choices": [{"index": 0, "turns": list(texts)}]}


# Texts that a careless substitution would change.
A = turns("First {answer} of $& A, $1 and {question_1}.", "Second\nanswer {ref_answer_1} of A \\n.")
B = turns("B's first: [[A]] %s", "B's second {answer_b_2} {}.")

answer("[[5]]")
cases = []
for question_id in (81, 101, 111, 121, 131):
    question = questions[question_id]
    is_math = question["category"] in common.NEED_REF_CATS
    reference = references[question_id] if is_math else None
    for multi_turn in (False, True):
        suffix = "-multi-turn" if multi_turn else ""
        single = common.Judge("gpt-4", prompts[("single-math-v1" if is_math else "single-v1") + suffix])
        common.run_judge_single(question, A, single, reference, multi_turn=multi_turn)
        cases.append({"question": question_id, "kind": "single", "turn": 1 + multi_turn, **seen})
        pair = common.Judge("gpt-4", prompts[("pair-math-v1" if is_math else "pair-v2") + suffix])
        common.run_judge_pair(question, A, B, pair, reference, multi_turn=multi_turn)
        cases.append({"question": question_id, "kind": "pair", "turn": 1 + multi_turn, **seen})

texts = [
    "Rating: [[5]]", "Rating: [[10]]", "[[7.5]]", "[[8.]]", "Rating: [6]", "[3] and then [[4]]", "[[4]] and then [[9]]",
    "[[ 5 ]]", "Rating: 5", "", "[[rating]]", "[[5/10]]", "[5/10]", "[[-1]]", "[-1]", "[[15]]", "[[0]]", "see [1] and [2]",
    "[[5]", "[5]]", "[[[6]]]", "[[5.5.5]]", "[[1,2]]", "Rating: [[2]]\n\n[[3]]", "\\[[8]\\]", "$ERROR$",
    "[[A]]", "[[B]]", "[[C]]", "[A]", "A", "[[B]] then [[A]]", "[[C]] then [[B]]", "[[a]]", "[[ A ]]", "[[D]]", "[[A]",
    "Final verdict: [[A]].", "[[[C]]]", "[[tie]]", "[[A]]\n[[B]]",
]
verdicts = []
question = questions[81]
for text in texts:
    answer(text)
    rating = common.run_judge_single(question, A, common.Judge("gpt-4", prompts["single-v1"]), None)[0]
    winner = common.run_judge_pair(question, A, B, common.Judge("gpt-4", prompts["pair-v2"]), None)[0]
    verdicts.append({"text": text, "rating": rating, "winner": winner})

out = ROOT / "test/fixtures/judge/fastchat.json"
out.parent.mkdir(parents=True, exist_ok=True)
whole = {
    "prompts": prompts,
    "temperatures": common.temperature_config,
    "answers": {"A": A["choices"][0]["turns"], "B": B["choices"][0]["turns"]},
    "cases": cases,
    "verdicts": verdicts,
}
out.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
