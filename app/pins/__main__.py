"""`python -m app.pins`: print the pins whose code has changed."""

from app.pins import changed

for line in changed():
    print(line)  # noqa: T201
