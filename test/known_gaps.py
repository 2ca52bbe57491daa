"""What doesn't work yet, by the name of the case that shows it. A case that fails and stands here is counted as skipped, with its reason; every case is run
all the same, so that one that has begun to work is seen. Nothing is added here without a sentence that a user would understand."""

import fnmatch

GAPS = {
}


def reason(case: str) -> str | None:
    return next((why for pattern, why in GAPS.items() if fnmatch.fnmatch(case, pattern)), None)
