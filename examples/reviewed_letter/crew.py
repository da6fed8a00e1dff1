"""A crew that drafts a letter, waits for a human's review of the draft, and translates it."""

from crewai import Agent, Crew, Task


def build() -> Crew:
    """A new crew at each call."""
    writer = Agent(
        role="Letter writer",
        goal="Write letters that say what they must in few, friendly words",
        backstory="You answer the mail of a small company.",
    )
    translator = Agent(
        role="Translator",
        goal="Translate letters so that they read as if written in {language}",
        backstory="You translate business letters.",
    )
    draft = Task(
        name="draft",
        description="Draft a letter to {recipient}: {matter}",
        expected_output="A letter of at most ten sentences.",
        agent=writer,
        human_input=True,
    )
    translation = Task(
        name="translation",
        description="Translate the letter to {language}.",
        expected_output="The letter in {language}.",
        agent=translator,
        context=[draft],
    )
    return Crew(agents=[writer, translator], tasks=[draft, translation])
