"""The crews of all workers, for a process that accepts runs and executes none."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from app.engine import InputRefused
from app.runs.background import PeriodicService
from app.runs.crew_info import CrewInfo
from app.runs.persistence.workers import WorkerRepository

_INTERVAL_SECONDS: Final = 2.0
_TYPES: Final[Mapping[str, Any]] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list[Any],
    "object": dict[str, Any],
    "null": None,
}


class CrewDirectory(PeriodicService):
    """Reads the descriptions that workers have stored.

    A crew remains known for a week after its last worker has ended; its runs wait meanwhile.
    """

    name = "crew directory"
    is_essential = True

    def __init__(self, workers: WorkerRepository) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._workers = workers
        self._fields: dict[str, Mapping[str, TypeAdapter[Any]]] = {}
        self.crews: Final[dict[str, CrewInfo]] = {}
        """The crews by name."""

    async def run_once(self) -> None:
        """Read the descriptions. Raises DatabaseUnavailable."""
        crews = await self._workers.descriptions()
        changed = [name for name, crew in crews.items() if self.crews.get(name) != crew]
        self.crews.clear()
        self.crews.update(crews)
        for name in changed:
            self._fields[name] = _fields(crews[name])

    def fingerprint(self, name: str) -> str | None:
        """The crew's fingerprint, empty for a flow; None if the crew is unknown."""
        crew = self.crews.get(name)
        return None if crew is None else crew.fingerprint

    def check_state(self, name: str, inputs: Mapping[str, Any]) -> None:
        """Raise InputRefused for an input whose type the state of a flow can't hold.

        Validators and bounds of the state are code of the flow: the worker applies them, and the
        run fails there.
        """
        if "id" in inputs:
            problem = "identifies a flow's state, and each run has its own state: leave it out"
            raise InputRefused("id", problem)
        fields = self._fields.get(name, {})
        for field, value in inputs.items():
            if field in fields:
                try:
                    fields[field].validate_python(value)
                except ValidationError as error:
                    first = error.errors(include_url=False, include_input=False)[0]
                    raise InputRefused(field, first["msg"]) from None


def _fields(crew: CrewInfo) -> Mapping[str, TypeAdapter[Any]]:
    """The validators of the fields of a flow's state whose types are plain."""
    properties = (crew.state_schema or {}).get("properties", {})
    types = {name: _type(schema) for name, schema in properties.items()}
    return {name: TypeAdapter(type_) for name, type_ in types.items() if type_ is not Any}


def _type(schema: Mapping[str, Any]) -> Any:
    """The type that a JSON Schema describes; Any if it is not plain."""
    if "anyOf" in schema:
        union = _type(schema["anyOf"][0])
        for option in schema["anyOf"][1:]:
            other = _type(option)
            if Any in (union, other):
                return Any
            union = union | other if union is not None else other | None
        return union
    kind = schema.get("type")
    is_plain = isinstance(kind, str) and not {"enum", "const", "format"} & schema.keys()
    return _TYPES.get(str(kind), Any) if is_plain else Any
