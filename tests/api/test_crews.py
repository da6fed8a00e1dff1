"""`/api/crews`: the available crews, by the real server."""

from dataclasses import replace

from app.crews.idea.profile import DEFAULTS
from app.crews.options import InputOptions
from app.crews.registry import Registry, idea_crew
from tests.serving import Running, Serve

REPORTS = ["profile_analysis", "startup_ideas_research", "personalized_recommendations"]


async def test_the_available_crews_are_listed_with_inputs_and_outputs(
    service: Running,
) -> None:
    response = await service.http.get("/api/crews")
    assert response.status_code == 200
    (idea,) = response.json()["crews"]
    assert idea["name"] == "idea"
    assert idea["execution_mode"] == idea["way"] == "plan"
    assert {field["name"]: field["default"] for field in idea["inputs"]} == dict(DEFAULTS)
    assert not any(field["required"] for field in idea["inputs"])
    assert all(field["help"].endswith(".") for field in idea["inputs"])
    assert all(field["default"] in field["examples"] for field in idea["inputs"][:-1])
    assert [output["name"] for output in idea["outputs"]] == REPORTS
    assert all(output["agent"] for output in idea["outputs"])
    assert (await service.http.get("/api/crews/idea")).json() == idea


async def test_the_old_name_of_the_execution_mode_is_deprecated_in_the_schema(
    service: Running,
) -> None:
    schema = (await service.http.get("/schema/openapi.json")).json()
    fields = schema["components"]["schemas"]["CrewView"]["properties"]
    assert fields["way"]["deprecated"] is True
    assert "deprecated" not in fields["execution_mode"]
    assert fields["way"]["enum"] == fields["execution_mode"]["enum"]


async def test_an_unknown_crew_is_not_found(service: Running) -> None:
    response = await service.http.get("/api/crews/nobody")
    assert response.status_code == 404
    assert response.json()["error_type"] == "not_found"


async def test_declared_inputs_are_listed_and_enforced(serve: Serve) -> None:
    inputs = {
        "goal_type": InputOptions(type="string", help="What for?", max_chars=10),
        "budget": InputOptions(type="number"),
    }
    crews = Registry([replace(idea_crew(), inputs=inputs)])
    async with serve(crews) as service:
        fields = {
            field["name"]: field
            for field in (await service.http.get("/api/crews/idea")).json()["inputs"]
        }
        assert fields["goal_type"] == {
            "name": "goal_type",
            "type": "string",
            "required": True,
            "default": None,
            "help": "What for?",
            "max_chars": 10,
            "examples": [],
        }
        assert fields["budget"]["required"] is False  # no text of the crew's names it
        assert fields["work_style"]["type"] is None
        for given, problem in [
            ({"goal_type": 5}, "goal_type: must be of type string"),
            ({"goal_type": "x" * 11}, "goal_type: 11 characters; at most 10 are allowed"),
            ({"goal_type": "x", "budget": True}, "budget: must be of type number"),
            ({"goal_type": "x"}, "missing; the crew idea needs them"),
        ]:
            response = await service.http.post("/api/runs", json={"crew": "idea", "inputs": given})
            assert response.status_code == 400
            assert problem in response.json()["error"]
