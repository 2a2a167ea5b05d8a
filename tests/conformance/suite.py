"""All cases, in the order of the table: what `Transport` promises, with everything around it failing."""

from tests.conformance import calls, outages, versions
from tests.conformance.case import CALL_SECONDS, Case, Place, cases, names

#: They add their cases when they are imported.
MODULES = (calls, outages, versions)

__all__ = ["CALL_SECONDS", "Case", "Place", "cases", "names"]
