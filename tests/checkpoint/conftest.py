"""Fixtures that the tests of tokenizers have as well."""

from tests.text.conftest import folders as folders
