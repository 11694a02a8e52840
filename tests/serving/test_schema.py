"""The app against its own schema: whatever the schema allows or forbids, no answer is a bug's."""

from contextlib import suppress

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from serving_helpers import Open

SHORT = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MODES = tuple(schemathesis.GenerationMode)  # what the schema allows, and what it forbids


def test_no_answer_is_a_server_error_and_all_are_as_the_schema_says(open_app: Open) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", open_app(hosts=["testserver"]).service.asgi)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/search", "/v1/embeddings", "/indexes"}
    for operation in operations:
        for mode in MODES:

            @SHORT
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: schemathesis.Case) -> None:
                checks = (not_a_server_error, response_schema_conformance, status_code_conformance)
                case.call_and_validate(checks=checks)

            with suppress(Unsatisfiable):  # an operation without parameters forbids nothing
                check()
