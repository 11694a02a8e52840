"""What several tests of the encoder need."""

import pytest

from epic_search.encoder.passes import Compiled, compiled


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The passes compiled on this machine, once; a test is skipped where they cannot be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPIC_SEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = compiled(build=True)
    if not isinstance(found, Compiled):
        pytest.skip(str(found))
    return found


@pytest.fixture
def tiles(library: Compiled) -> Compiled:
    """The same with products on tiles; a test is skipped where there are none."""
    if not library.has_tiles:
        pytest.skip("this processor, or its system, has no AMX")
    return library
