"""The app against its own schema: whatever the schema allows or forbids, no answer is a bug's."""

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
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


@pytest.fixture
def schema(open_app: Open, home: Path) -> schemathesis.BaseSchema:
    service = open_app().service
    return schemathesis.openapi.from_asgi("/openapi.json", service.asgi)


wanted = schemathesis.pytest.from_fixture("schema")


@wanted.parametrize()
@SHORT
def test_no_answer_is_a_server_error_and_all_are_as_the_schema_says(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=(not_a_server_error, response_schema_conformance, status_code_conformance))
