"""What doesn't work yet, by the name of the case that shows it. A case that fails and stands here is counted as skipped, with its reason; every case is run
all the same, so that one that has begun to work is seen. Nothing is added here without a sentence that a user would understand."""

import fnmatch

GAPS = {
    "moved/cow_shared/*": "pages that parent and child share copy-on-write become pages of each one's own; their content is right",
    "moved/deleted_map/*": "a mapping of a deleted file is refused by name instead of moved",
    "moved/wild_memory/*": "a program that maps, remaps and unmaps all the time while it is copied may find a mapping split in two, which mremap refuses",
    "moved/wild_processes/*": "a program that forks and execs all the time while it is copied may be refused, or lose a child",
    "moved/vfork/*": "a pod in which some process is always in vfork may be refused after its freeze",
    "moved/many_maps/postcopy": "locking pages that are still owed may take longer than the source waits",
    "moved/scheduling/*": "a program that asks for its own scheduling class at the moment of the freeze may see the freeze's, SCHED_FIFO",
    "moved/shared_table/*": "a process that closes descriptors while it is looked at may be refused, wrongly; trying again helps",
    "moved/exited_leader/*": "a process whose first thread has exited may be refused",
    "programs/nginx*": "a server that opens and closes files all the time may be refused, wrongly, for one that it has just closed; trying again helps",
}


def reason(case: str) -> str | None:
    return next((why for pattern, why in GAPS.items() if fnmatch.fnmatch(case, pattern)), None)
