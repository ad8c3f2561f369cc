#!/usr/bin/env python3
"""Kills a local cluster's processes at random moments while a job runs, and checks that nothing is lost.

Starts a cluster in --state-dir with the programs of --bin-dir, submits --job, and while its --stage runs sends SIGKILL to --kills
victims (student, teacher, curate, worker, coordinator, or all of them with the supervisor, after which `local up` starts them again) at
moments and in an order that --seed fixes. Then waits for the job and prints one JSON line. For generation it reads the traces before each
kill and after it: none that was committed may change, and at the end none may be missing or double.

Exit code 0: the job succeeded, all kills happened, nothing was lost. Python's standard library alone.
"""
import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time

ENDED = ("succeeded", "failed", "cancelled")
STAGES = {"generate": ["teacher", "worker", "coordinator"], "train": ["student", "worker", "coordinator"]}
POLL_SECONDS = 0.1
# How long a command is repeated while the coordinator restarts.
PATIENCE_SECONDS = 60


class Cluster:
    def __init__(self, bin_dir, state_dir):
        self.distctl_path = os.path.join(bin_dir, "distctl")
        self.state_dir = os.path.abspath(state_dir)

    def distctl(self, *words, patience=PATIENCE_SECONDS):
        """What `distctl words --json` prints; repeated while it fails."""
        deadline = time.monotonic() + patience
        command = [self.distctl_path, "--state-dir", self.state_dir, *words, "--json"]
        while True:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode == 0:
                return done.stdout
            if time.monotonic() >= deadline:
                raise SystemExit(f"chaos: {' '.join(command)} gave {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
            time.sleep(POLL_SECONDS)

    def up(self):
        return json.loads(self.distctl("local", "up", patience=0))

    def down(self):
        subprocess.run([self.distctl_path, "--state-dir", self.state_dir, "local", "down"], capture_output=True)

    def job(self, job_id):
        return json.loads(self.distctl("status", job_id))

    def traces(self, sample_set):
        """Key -> trace of everything that is committed; a list of keys that came twice."""
        traces, doubled = {}, []
        for line in self.distctl("store", "cat", sample_set).splitlines():
            trace = json.loads(line)
            key = (trace["prompt_hash"], trace["sample_index"], trace["model_revision"], trace["sampling_hash"])
            if key in traces:
                doubled.append(key)
            traces[key] = trace
        return traces, doubled

    def sample_set(self, name):
        for one in json.loads(self.distctl("store", "ls"))["sets"]:
            if one["set"] == name:
                return one
        return None

    def pids(self, victim, job_id):
        """Processes of this cluster that play the part; several ranks of a stage are several."""
        if victim == "all":
            return [pid for part in ("supervisor", "coordinator", "worker", "student", "teacher", "curate")
                    for pid in self.pids(part, job_id)]
        if victim in ("student", "teacher", "curate"):
            return [pid for pid, argv in processes() if os.path.basename(argv[0]) == f"retort-{victim}" and len(argv) > 1 and
                    argv[1] == "task" and any(word.startswith(job_id + ".") for word in argv)]
        try:
            with open(os.path.join(self.state_dir, "local.json"), encoding="utf-8") as file:
                pid = json.load(file)[victim]["pid"]
        except (OSError, ValueError, KeyError):
            return []
        # The file may be stale and its id used again.
        return [pid] if any(found == pid and self.state_dir in " ".join(argv) for found, argv in processes()) else []


def processes():
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                argv = file.read().decode(errors="replace").split("\0")[:-1]
        except OSError:
            continue
        if argv:
            yield int(name), argv


def stage_of(job, name):
    return next((stage for stage in job["stages"] if stage["stage"] == name), None)


def is_under_way(job, name):
    """Work that a kill can hurt has been done: something was committed, or a step taken."""
    stage = stage_of(job, name)
    return stage is not None and stage["state"] == "running" and stage["progress"]["done"] > 0


def has_ended(job, name):
    stage = stage_of(job, name)
    return job["state"] in ENDED or (stage is not None and stage["state"] in ENDED)


class Chaos:
    def __init__(self, cluster, job_id, arguments):
        self.cluster = cluster
        self.job_id = job_id
        self.stage = arguments.stage
        self.random = random.Random(arguments.seed)
        self.victims = ["all"] if arguments.kill_all_once else arguments.victims.split(",") if arguments.victims else STAGES[arguments.stage]
        self.wanted = 1 if arguments.kill_all_once else arguments.kills
        self.gap = arguments.gap
        self.killed = collections.Counter()
        self.problems = []
        self.committed = {}
        self.sample_set = f"{job_id}/teacher"

    def run(self):
        while not is_under_way(self.cluster.job(self.job_id), self.stage):
            if has_ended(self.cluster.job(self.job_id), self.stage):
                return
            time.sleep(POLL_SECONDS)
        while sum(self.killed.values()) < self.wanted:
            time.sleep(self.random.uniform(0.2 * self.gap, 1.8 * self.gap))
            if has_ended(self.cluster.job(self.job_id), self.stage):
                return
            self.note_traces()
            self.kill(self.random.choice(self.victims))

    def kill(self, victim):
        pids = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not pids and time.monotonic() < deadline:  # it may just be starting again
            pids = self.cluster.pids(victim, self.job_id)
            if not pids:
                if has_ended(self.cluster.job(self.job_id), self.stage):
                    return
                time.sleep(0.02)
        if victim != "all":
            pids = [self.random.choice(pids)] if pids else []
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not pids:
            self.problems.append(f"no {victim} process for {PATIENCE_SECONDS} s")
            return
        self.killed[victim] += 1
        print(f"chaos: killed {victim} {pids}", file=sys.stderr, flush=True)
        if victim == "all":
            self.cluster.up()

    def note_traces(self):
        if self.stage != "generate":
            return
        traces, doubled = self.cluster.traces(self.sample_set)
        self.check(traces, doubled)
        self.committed = traces

    def check(self, traces, doubled):
        if doubled:
            self.problems.append(f"{len(doubled)} keys are stored twice")
        for key, trace in self.committed.items():
            if traces.get(key) != trace:
                self.problems.append(f"committed trace {key[0][:12]}/{key[1]} is {'gone' if key not in traces else 'another now'}")

    def check_all_traces(self):
        traces, doubled = self.cluster.traces(self.sample_set)
        self.check(traces, doubled)
        info = self.cluster.sample_set(self.sample_set)
        wanted = info["prompts"] * info["n"]
        samples = collections.Counter((trace["prompt_index"], trace["sample_index"]) for trace in traces.values())
        if len(samples) != wanted or len(traces) != wanted:
            self.problems.append(f"{len(traces)} traces for {len(samples)} samples, {wanted} were asked for")
        return len(traces)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", required=True, help="folder of distctl and the other programs")
    parser.add_argument("--state-dir", required=True, help="state folder of the cluster; made when absent")
    parser.add_argument("--job", required=True, help="job file")
    parser.add_argument("--stage", choices=sorted(STAGES), default="train", help="while it runs, processes are killed")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument("--gap", type=float, default=1.0, help="mean seconds between kills")
    parser.add_argument("--victims", default="", help="comma-separated: student,teacher,curate,worker,coordinator,all (default: the stage's)")
    parser.add_argument("--kill-all-once", action="store_true", help="kill everything once, then `local up`")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed to submit")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that the job may take")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    return parser.parse_args()


def main():
    arguments = parse()
    cluster = Cluster(arguments.bin_dir, arguments.state_dir)
    cluster.up()
    try:
        start = time.monotonic()
        overrides = [word for one in arguments.set for word in ("--set", one)]
        job_id = json.loads(cluster.distctl("submit", arguments.job, "--overwrite", *overrides, patience=0))["job"]
        chaos = Chaos(cluster, job_id, arguments)
        chaos.run()
        while (job := cluster.job(job_id))["state"] not in ENDED:
            if time.monotonic() - start > arguments.timeout:
                chaos.problems.append(f"the job has not ended after {arguments.timeout:g} s")
                break
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - start
        traces = chaos.check_all_traces() if arguments.stage == "generate" else None
    finally:
        if not arguments.keep:
            cluster.down()
    kills = sum(chaos.killed.values())
    if kills < chaos.wanted:
        chaos.problems.append(f"the stage ended after {kills} of {chaos.wanted} kills; use a longer job or a smaller --gap")
    print(json.dumps({
        "job": job_id,
        "state": job["state"],
        "message": job["message"],
        "adapter_sha256": job["adapter_sha256"],
        "manifest_sha256": job["manifest_sha256"],
        "kills": kills,
        "by_victim": dict(sorted(chaos.killed.items())),
        "seed": arguments.seed,
        "seconds": round(seconds, 2),
        "traces": traces,
        "problems": chaos.problems,
    }), flush=True)
    return 0 if job["state"] == "succeeded" and not chaos.problems else 1


if __name__ == "__main__":
    sys.exit(main())
