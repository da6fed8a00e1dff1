"""What models answer to the crews in examples/; for the `respond` of a stub."""

import json

from tests.load.stub_model import Body


def secretary(body: Body) -> Body:
    """Asks the tool for a date, then answers with it."""
    found = [message for message in body["messages"] if message["role"] == "tool"]
    if "Write the minutes" in str(body["messages"]):
        return {"role": "assistant", "content": "# Minutes\n\nAda sends the offer."}
    if not found:
        arguments = json.dumps({"meeting_date": "2026-03-02", "weekday": "Thursday"})
        call = {"name": "date_of_weekday", "arguments": arguments}
        calls = [{"id": "call_1", "type": "function", "function": call}]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    item = {"what": "send the offer", "who": "Ada", "due": found[-1]["content"]}
    return {"role": "assistant", "content": json.dumps({"items": [item]})}
