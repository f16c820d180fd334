"""The prompts of language-model tiers and of the answering model.

A module's prompt has the same parts in the same order: role, task, criteria, way of working (the
style), input format, output format, data. The styles differ in the way of working only:

    direct   the answer line and nothing else
    cot      a few steps of reasoning, then the answer line
    reflect  a plan, its execution and a check of it, then the answer line

The reply's part that counts stands in answer tags: whole numbers from 0 to 10 for a filter, a JSON
list of notes for an extractor, text for a summary (read by `rlroute.memory.replies`). A model that
writes a summary sees the notes and no chunks; the answering model sees the summary and nothing
else of the history.

What it leaves out: the calls (`rlroute.memory.llm_tiers`). Source: BudgetMem (arXiv 2602.06025,
section on modules); the wording is our own.

How to use: `write_module_prompt(module, "cot", ModuleInput(question, chunks))`.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlroute.memory.base import Chunk, MemoryQuestion, ModuleInput, Role
from rlroute.memory.config import ModuleSpec, PromptStyle

ROLE_LINES: Mapping[Role, str] = {
    "filter": "You judge which pieces of a long history help to answer a question about it.",
    "extract": "You take notes from pieces of a long history, for someone who has a question.",
    "summary": "You are the editor of the notes that someone needs to answer a question.",
}
TASKS: Mapping[Role, str] = {
    "filter": "Score each numbered piece below by how much it helps to answer the question.",
    "extract": "Read the pieces below and note what they say that bears on the question.",
    "summary": "Turn the notes below into a short text from which the question can be answered.",
}

# What decides a good output: of the modules of role filter and summary, and of known extractors.
INSTRUCTIONS: Mapping[str, str] = {
    "filter": (
        "A piece helps if it states the answer or a part of it, names the people and things of "
        "the question, or dates what is asked about. Mind that facts change: of two pieces about "
        "the same matter both count. Judge by meaning, not by shared words, and judge each piece "
        "by itself. What someone denies, wishes or merely imagines is weak evidence."
    ),
    "entity": (
        "Note facts about people and things: where someone lives, works, whom they are with, "
        "what they own or like. Take only what a speaker states as true of somebody; leave out "
        "what is denied, wished for or made up. Name the person instead of writing I, we or she. "
        "The context is the word said and the date of the piece, as in (said 2023-05-08)."
    ),
    "temporal": (
        "Note what happened and when. Turn relative dates into calendar dates with the help of "
        "the date of the piece: yesterday, in a piece of 2023-05-08, is 2023-05-07. Name the "
        "person instead of writing I, we or she. The context is the word on and the date when it "
        "happened, as in (on 2023-05-07); leave it away where no date can be told."
    ),
    "topic": (
        "Note what belongs together: all things that stand in the same relation to the same "
        "person, collected from all pieces into one note whose object is a list parted by "
        "semicolons, as in Anna - visited - Rome; Oslo; and changes of subject, where they "
        "matter for the question. Each thing stands in the list once."
    ),
    "summary": (
        "Keep every note that bears on the question, and its date. Leave out what does not, and "
        "what is said twice. Put events in the order of their dates; where a fact changed, say "
        "which is the latest. Add nothing that is not in the notes, and do not answer the "
        "question yourself: end with one sentence that says how the evidence is to be used."
    ),
}

SCALES: Mapping[PromptStyle, str] = {
    "direct": "10 essential, 7-9 clearly helpful, 4-6 partly helpful, 1-3 weak, 0 irrelevant",
    "cot": "10 essential, 7-9 clearly helpful, 4-6 partly helpful, 1-3 weak, 0 irrelevant",
    "reflect": "9-10 essential, 6-8 clearly helpful, 3-5 partly helpful, 1-2 weak, 0 irrelevant",
}
STYLES: Mapping[PromptStyle, str] = {
    "direct": "Write the answer line only: no introduction, no explanation.",
    "cot": (
        "Think step by step, in a few short sentences: what does the question ask for, and what "
        "in the input bears on it? Then write the answer line."
    ),
    "reflect": (
        "Work in three parts before the answer line, each of a few short sentences.\n"
        "PLAN: say what the question asks for, which people, things and dates matter, and what "
        "you will look for.\n"
        "ACT: go through the input in order and carry out the plan; write a draft.\n"
        "REFLECT: check the draft against the criteria. Is something missing, invented, out of "
        "order, or in the wrong form? Mend it. Then write the answer line."
    ),
}
INPUT_FORMATS: Mapping[Role, str] = {
    "filter": "the question, then pieces in tags that bear their number and date",
    "extract": "the question, then pieces in tags that bear their number and date",
    "summary": "the question, then the notes of each note taker in tags, one note a line",
}
NOTE_FORMAT = (
    "one line <answer>[...]</answer> that holds a JSON list of strings, one note each, written "
    "SUBJECT - RELATION - OBJECT (CONTEXT); the context may be missing. Example:\n"
    '<answer>["Anna - works as - a nurse (said 2023-05-08)"]</answer>\n'
    "An empty list, <answer>[]</answer>, says that there is nothing to note."
)
SUMMARY_FORMAT = "the text in tags, <answer>...</answer>, of at most 150 words"


def write_module_prompt(module: ModuleSpec, style: PromptStyle, work: ModuleInput) -> str:
    """Return what a language model is asked; `module.instructions` are the criteria."""
    parts = [
        ROLE_LINES[module.role],
        f"Task: {TASKS[module.role]}",
        f"Criteria: {module.instructions}",
        f"Way of working: {STYLES[style]}",
        f"Input: {INPUT_FORMATS[module.role]}.",
        f"Output: {_describe_output(module.role, style, len(work.chunks))}",
        write_question(work.question),
    ]
    if module.role == "summary":
        parts += [write_notes(name, notes) for name, notes in work.notes.items()]
    else:
        parts += [write_chunk(number, chunk) for number, chunk in enumerate(work.chunks, start=1)]
    return "\n\n".join(parts)


def write_answer_prompt(question: MemoryQuestion, summary: str) -> str:
    """Return what the answering model is asked: the summary and the question."""
    return "\n\n".join(
        [
            "Answer the question from the memory below, which sums up a long history.",
            "Answer with a short phrase: a name, a date, a number or a list, not a sentence. Use "
            "the words of the memory where you can. Where things changed, the latest counts, "
            "unless the question asks about another time. If the memory does not hold the "
            "answer, say unknown.",
            f"<summary>\n{summary}\n</summary>",
            write_question(question),
            "Answer:",
        ]
    )


def write_question(question: MemoryQuestion) -> str:
    """Return the question, with the date on which it is asked where that is known."""
    asked = f"Asked on: {question.asked_on}\n" if question.asked_on else ""
    return f"{asked}Question: {question.query.text}"


def write_chunk(number: int, chunk: Chunk) -> str:
    """Return a chunk in tags with its number, from 1, and its date where it has one."""
    date = f' date="{chunk.when}"' if chunk.when else ""
    return f'<piece number="{number}"{date}>\n{chunk.text}\n</piece>'


def write_notes(module_name: str, notes: tuple[str, ...]) -> str:
    """Return the notes of one module in tags, one a line."""
    lines = "\n".join(notes) if notes else "(none)"
    return f'<notes from="{module_name}">\n{lines}\n</notes>'


def _describe_output(role: Role, style: PromptStyle, chunks: int) -> str:
    """Return what the reply has to look like."""
    if role == "extract":
        return NOTE_FORMAT
    if role == "summary":
        return f"{SUMMARY_FORMAT}."
    return (
        f"one line <answer>[s1, s2, ...]</answer> that holds {chunks} whole numbers from 0 to 10, "
        f"the score of each piece in the order of the pieces ({SCALES[style]})."
    )
