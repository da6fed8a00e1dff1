"""A submission as code: the same call with curl and in Python."""

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

_KEY_OF_CURL = ' \\\n  -H "Authorization: Bearer $KEY"'
_KEY_OF_PYTHON = '\n    headers={"Authorization": f"Bearer {os.environ[\'KEY\']}"},'


def curl(url: str, body: Mapping[str, Any], *, needs_key: bool) -> Markup:
    """The call with curl. A script keeps the element with the body current."""
    text = json.dumps(body, indent=2, ensure_ascii=False)
    return Markup("curl {}/api/runs{} \\\n  --json '<span data-body=\"curl\">{}</span>'").format(
        url, _KEY_OF_CURL if needs_key else "", text.replace("'", "'\\''")
    )


def python(url: str, body: Mapping[str, Any], *, needs_key: bool) -> Markup:
    """The call in Python. A script keeps the element with the body current."""
    return Markup(
        'import {}httpx\n\nrun = httpx.post(\n    "{}/api/runs?wait=60",{}\n'
        '    json=<span data-body="python">{}</span>,\n    timeout=90,\n).json()\n'
        'print(run["summary"])\nprint(run["outputs"])'
    ).format(
        "os\nimport " if needs_key else "",
        url,
        _KEY_OF_PYTHON if needs_key else "",
        python_literal(body, 4),
    )


def python_literal(value: Any, indent: int) -> str:
    """A JSON value as Python; objects and lists have a line for each item."""
    inner, outer = " " * (indent + 4), " " * indent
    if isinstance(value, Mapping) and value:
        items = (
            f"{inner}{json.dumps(name, ensure_ascii=False)}: {python_literal(one, indent + 4)},\n"
            for name, one in value.items()
        )
        return f"{{\n{''.join(items)}{outer}}}"
    if isinstance(value, list) and value:
        items = (f"{inner}{python_literal(one, indent + 4)},\n" for one in value)
        return f"[\n{''.join(items)}{outer}]"
    if isinstance(value, bool) or value is None:
        return str(value)
    return json.dumps(value, ensure_ascii=False)
