"""A crew that triages messages, notes urgent ones for the engineer on call, and replies."""

from typing import Any

from crewai import Agent, Crew, Task
from crewai.tasks.conditional_task import ConditionalTask
from crewai.tasks.task_output import TaskOutput

LEVELS = ("urgent", "normal", "spam")


def names_a_level(output: TaskOutput) -> tuple[bool, Any]:
    """A guardrail that requires a level as the first word, or the task is executed again."""
    words = output.raw.strip().lower().replace(":", " ").split()
    if words and words[0] in LEVELS:
        return True, output.raw.strip()
    return False, f"Begin with one of these words: {', '.join(LEVELS)}."


def is_urgent(triage: TaskOutput) -> bool:
    """Whether the note is needed: the condition of its task."""
    return triage.raw.lower().startswith("urgent")


def build() -> Crew:
    """A new crew at each call."""
    dispatcher = Agent(
        role="Dispatcher",
        goal="Wake nobody without need, and everybody who is needed",
        backstory="You read what customers of {product} write.",
    )
    supporter = Agent(
        role="Supporter",
        goal="Help in few words",
        backstory="You know {product} and its customers.",
    )
    triage = Task(
        name="triage",
        description="How urgent is this message?\n\n{message}",
        expected_output="One word, urgent, normal or spam, then a colon and a reason.",
        agent=dispatcher,
        guardrail=names_a_level,
        guardrail_max_retries=2,
    )
    note = ConditionalTask(
        name="note_for_engineer",
        description="Tell the engineer on call what is wrong and where to look:\n\n{message}",
        expected_output="At most five lines.",
        agent=dispatcher,
        condition=is_urgent,
    )
    reply = Task(
        name="reply",
        description="Reply to the customer's message:\n\n{message}",
        expected_output="A friendly reply of at most ten lines.",
        agent=supporter,
        context=[triage],
    )
    return Crew(agents=[dispatcher, supporter], tasks=[triage, note, reply])
