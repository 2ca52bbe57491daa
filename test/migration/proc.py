"""What /proc says about a pod's processes, in a form that a move may not change.

Read from the machine that the playground stands on, which sees the processes of all nodes. Names that are the kernel's own (inodes,
pids outside the pod, mount ids) are replaced by what they mean.
"""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pathlib
import re

PROC = pathlib.Path("/proc")


class Gone(Exception):
    """A process ended while we looked at it."""


def _bytes(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().hex()
    except OSError as error:
        return f"({error.strerror})"


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        raise Gone(str(path)) from None
    except OSError as error:  # ESRCH: a zombie has no environment
        return f"({error.strerror})"


def _link(path: pathlib.Path) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        return f"({error.strerror})"


def pod_processes(playground: str, pod: str) -> list[int]:
    """Host pids of the processes in the work cgroup of a pod, on whatever node of the playground; zombies included."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                groups = (entry / "cgroup").read_text()
            except OSError:
                continue
            if re.search(rf"^0::\S*/{re.escape(playground)}/\S*/pods/{re.escape(pod)}/work\b", groups, re.M):
                found.append(int(entry.name))
    return found


def pids_limit(pid: int) -> pathlib.Path:
    """pids.max of the cgroup that a process is in, with whichever version of cgroups this machine has it."""
    groups = dict(line.split(":", 2)[1:] for line in _read(PROC / str(pid) / "cgroup").splitlines())
    kinds = {"cgroup": "pids" in groups, "cgroup2": "pids" not in groups}
    for line in _read(PROC / "mounts").splitlines():
        _, where, kind, options, *_ = line.split()
        if kinds.get(kind) and (kind == "cgroup2" or "pids" in options.split(",")):
            return pathlib.Path(where) / groups["pids" if kind == "cgroup" else ""].lstrip("/") / "pids.max"
    raise Gone(f"no pids.max for {pid}")


def cgroup_limits(pid: int) -> dict[str, str]:
    """What the cgroups of a process, of either version, let it have: {"memory": BYTES, "cpu": "QUOTA PERIOD"}; only what is limited."""
    mounts = [line.split() for line in _read(PROC / "mounts").splitlines()]
    found = {}
    for line in _read(PROC / str(pid) / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        files = {"": {"memory": ["memory.max"], "cpu": ["cpu.max"]}, "memory": {"memory": ["memory.limit_in_bytes"]},
                 "cpu": {"cpu": ["cpu.cfs_quota_us", "cpu.cfs_period_us"]}}
        for controller in controllers.split(","):
            kind = "cgroup" if controller else "cgroup2"
            root = next((mount[1] for mount in mounts if mount[2] == kind and (not controller or controller in mount[3].split(","))), None)
            for limit, names in files.get(controller, {}).items():
                with contextlib.suppress(OSError):
                    value = " ".join(pathlib.Path(f"{root}{path}/{name}").read_text().strip() for name in names)
                    # Without a limit of its own: v2's word, v1's -1, or as many pages as there are addresses.
                    if not value.startswith(("max", "-1")) and int(value.split()[0]) < 1 << 60:
                        found[limit] = value
    return found


def inner_pid(pid: int) -> int:
    """The pid of a process (or thread) in the innermost namespace that it is in."""
    found = re.search(r"^NSpid:.*?(\d+)$", _read(PROC / str(pid) / "status"), re.M)
    if not found:
        raise Gone(str(pid))
    return int(found.group(1))


def _fields(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines()) if name}


STATUS = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd",
          "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Speculation_Store_Bypass", "SpeculationIndirectBranch", "Cpus_allowed",
          "Mems_allowed_list", "CoreDumping", "THP_enabled")
INNER = ("NStgid", "NSpid", "NSpgid", "NSsid")
# Numbers as in proc(5), from 1.
STAT = {"tty": 7, "nice": 19, "startcode": 26, "endcode": 27, "startstack": 28, "exit_signal": 38, "rt_priority": 40, "policy": 41,
        "start_data": 45, "end_data": 46, "start_brk": 47, "arg_start": 48, "arg_end": 49, "env_start": 50, "env_end": 51}


def _thread(task: pathlib.Path) -> dict:
    status = _fields(_read(task / "status"))
    facts = {name: status.get(name, "") for name in STATUS}
    facts |= {name: status.get(name, "").split()[-1:] for name in INNER}
    facts["Name"] = status.get("Name", "")
    stat = _read(task / "stat").rpartition(")")[2].split()
    if not stat:  # it ends just now
        return {"State": "gone"}
    facts |= {name: stat[number - 3] for name, number in STAT.items()}
    if status.get("State", "")[:1] == "Z":  # its parent can see who it was, not what it would have done
        return {name: facts[name] for name in (*INNER, "Name", "Uid", "Gid")} | {"State": "zombie"}
    elif status.get("State", "")[:1] == "T":
        facts["State"] = "stopped"
    if status.get("TracerPid", "0") != "0":
        facts["TracerPid"] = "is traced"
    return facts


def _maps(text: str) -> list[str]:
    """Mappings with their flags; neighbours that differ in nothing are one, as the kernel may or may not have merged them."""
    merged: list[dict] = []
    current: dict | None = None
    for line in text.splitlines():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ (\d+)\s*(.*)", line)
        if head:
            start, end, offset = int(head[1], 16), int(head[2], 16), int(head[4], 16)
            current = {"start": start, "end": end, "what": f"{head[3]} {head[6]}".strip(), "offset": offset, "file": head[5] != "0",
                       "flags": ""}
            merged.append(current)
        elif current is not None and line.startswith("VmFlags:"):
            # sd: written since some time; ac: accounted, which follows the order of things done; mr, mw, me, ms: what may be, follows the others
            current["flags"] = " ".join(flag for flag in line.split()[1:] if flag not in ("sd", "ac", "mr", "mw", "me", "ms", "nr"))
            last = merged[-2] if len(merged) > 1 else None
            if last and last["end"] == current["start"] and last["what"] == current["what"] and last["flags"] == current["flags"] and (
                    not current["file"] or last["offset"] + last["end"] - last["start"] == current["offset"]):
                last["end"] = current["end"]
                merged.pop()
                current = None
    return [f"{one['start']:x}-{one['end']:x} {one['what']}" + (f" +{one['offset']:x}" if one["file"] else "") + f" [{one['flags']}]"
            for one in merged if "[vsyscall]" not in one["what"]]


class _Names:
    """Gives kernel names that mean only sameness (inode numbers) small numbers in order of appearance."""

    def __init__(self):
        self.known: dict[str, int] = {}

    def __call__(self, text: str) -> str:
        return re.sub(r"(\w+):\[(\d+)\]", lambda found: f"{found[1]}:#{self.known.setdefault(found[0], len(self.known))}", text)


FDINFO = ("sigmask", "clockid", "it_interval", "settime flags", "eventfd-semaphore")


def _descriptors(process: pathlib.Path, names: _Names) -> dict[int, str]:
    found = {}
    try:
        numbers = sorted(int(entry.name) for entry in (process / "fd").iterdir())
    except OSError:
        return {}
    for number in numbers:
        try:
            link = os.readlink(process / "fd" / str(number))
            info = (process / "fdinfo" / str(number)).read_text()
        except OSError:
            continue
        parts = [names(link)]
        for line in info.splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "flags":  # without O_LARGEFILE, which says nothing on 64 bits
                parts.append(f"flags={int(value, 8) & ~0o100000:o}")
            elif name.strip() in FDINFO:
                parts.append(f"{name.strip()}={' '.join(value.split())}")
            elif name.strip() == "tfd":
                watched = re.match(r"tfd:\s*(\d+) events:\s*(\w+) data:\s*(\w+)", line.strip())
                parts.append(f"watches {watched[1]} {watched[2]} {watched[3]}" if watched else line)
            elif name.strip() == "lock":  # lock: 1: POSIX ADVISORY WRITE pid dev:inode start end
                words = value.split()
                parts.append("lock " + " ".join(words[1:4] + words[-2:]))
        found[number] = "; ".join(parts[:1] + sorted(parts[1:]))
    return found


def _mounts(text: str) -> list[str]:
    # Point, type and options; not where the layers of an overlay lie on this node.
    lines = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 4:
            continue
        options = [one for one in words[3].split(",") if not re.match(r"(lowerdir|upperdir|workdir|redirect_dir|uuid|size|nr_inodes)", one)]
        lines.append(f"{words[1]} {words[2]} {','.join(options)}")
    return lines


def _process(pid: int, names: _Names) -> dict:
    process = PROC / str(pid)
    facts = {f"thread {inner_thread}": thread for inner_thread, thread in _threads(process)}
    if all(thread.get("State") == "zombie" for thread in facts.values()):
        return facts
    facts["maps"] = _maps(_read(process / "smaps"))
    facts["descriptors"] = _descriptors(process, names)
    for name in ("limits", "personality", "oom_score_adj", "coredump_filter", "comm", "cmdline", "environ", "loginuid", "timerslack_ns"):
        facts[name] = _read(process / name)
    facts["auxv"] = _bytes(process / "auxv")
    facts["timers"] = [line for line in _read(process / "timers").splitlines() if line.startswith(("ID", "notify", "ClockID", "signal"))]
    facts["timers"] = [re.sub(r"pid\.\d+", "pid", line) for line in facts["timers"]]
    facts["mounts"] = _mounts(_read(process / "mounts"))
    for name in ("cwd", "exe", "root"):
        facts[name] = _link(process / name)
    return facts


def _threads(process: pathlib.Path):
    try:
        tasks = sorted((process / "task").iterdir(), key=lambda task: int(task.name))
    except OSError:
        raise Gone(str(process)) from None
    for task in tasks:
        try:
            yield inner_pid(int(task.name)), _thread(task)
        except Gone:
            continue


def snapshot(pids: list[int]) -> dict[int, dict]:
    """Everything about these processes, by their pid inside the pod."""
    names, all_of_them = _Names(), {}
    known = []
    for pid in pids:
        with contextlib.suppress(Gone):
            known.append((inner_pid(pid), pid))
    for inner, pid in sorted(known):
        with contextlib.suppress(Gone):
            all_of_them[inner] = _process(pid, names)
    return all_of_them


def differences(before: dict[int, dict], after: dict[int, dict], varies: collections.abc.Collection[str] = ()) -> list[str]:
    """What is not as it was. `varies` names what the program itself changes all the time."""
    found = []
    if "processes" not in varies and set(before) != set(after):
        found.append(f"processes were {sorted(before)}, are {sorted(after)}")
    both = sorted(set(before) & set(after))
    for pid in both[:1] if "processes" in varies else both:
        old, new = before[pid], after[pid]
        for name in sorted(set(old) | set(new)):
            if name == "descriptors" and "names" in varies:
                old[name], new[name] = _nameless(old[name]), _nameless(new[name])
            if name in varies or (name.startswith("thread") and "threads" in varies) or old.get(name) == new.get(name):
                continue
            found += [f"process {pid}: {name}: {line}" for line in _difference(old.get(name), new.get(name))]
    return found


def _nameless(descriptors: dict[int, str]) -> dict[int, str]:
    """Without the names of files: those of deleted ones are the kernel's to make up."""
    return {number: re.sub(r"^/[^;]*", "(a file)", text) for number, text in descriptors.items()}


def _difference(old, new) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [f"{key}: was {old.get(key, 'not there')}, is {new.get(key, 'not there')}" for key in sorted(set(old) | set(new), key=str)
                if old.get(key) != new.get(key)]
    if isinstance(old, list) and isinstance(new, list):
        return [f"no longer there: {line}" for line in old if line not in new] + [f"new: {line}" for line in new if line not in old] or \
            ["in another order"]
    if isinstance(old, str) and isinstance(new, str) and "\n" in old:
        return _difference(old.splitlines(), new.splitlines())
    return [f"was {old!r:.200}, is {new!r:.200}"]


def not_at_rest(pids: list[int]) -> list[str]:
    """What a pod that isn't being moved may not have: a tracer, or memory registered with a userfaultfd."""
    found = []
    for pid in pids:
        process = PROC / str(pid)
        try:
            for task in (process / "task").iterdir():
                tracer = _fields(_read(task / "status")).get("TracerPid", "0")
                if tracer != "0":
                    found.append(f"thread {task.name} is traced by {tracer}")
            flags = set(" ".join(re.findall(r"^VmFlags: (.*)$", _read(process / "smaps"), re.M)).split()) & {"um", "uw", "ui"}
            if flags:
                found.append(f"process {pid} has memory with userfaultfd flags {sorted(flags)}")
        except (Gone, OSError):
            continue
    return found
