"""Options of the verb that looks at every scheme before one is decided on."""

from __future__ import annotations

from qarat.surfaces.options.groups import IntoFolder
from qarat.values.requests.advise import AdviseRequest


class AdviseOptions(IntoFolder, frozen=True, kw_only=True):
    """See what a dozen schemes would cost, each with its best recipe for a budget, before deciding on one.

    Attributes:
        out: Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it.
            (default: MODEL-advice)
        page: Leave the page (FOLDER/report.html) out.
    """

    SUFFIX = "advice"

    page: bool = True
    advice: AdviseRequest = AdviseRequest()
