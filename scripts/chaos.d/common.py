"""What several parts need: commands, waiting with a deadline, time."""
import os, subprocess, time

HERE = os.path.dirname(os.path.abspath(__file__))


def now():
    """One clock for all processes of a run."""
    return time.monotonic()


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
    return done.stdout


def wait_until(what, condition, deadline_s, every_s=0.05):
    if not becomes(condition, deadline_s, every_s):
        raise SystemExit(f"{what}: not within {deadline_s} s")


def becomes(condition, deadline_s, every_s=0.05):
    end = now() + deadline_s
    while not condition():
        if now() > end:
            return False
        time.sleep(every_s)
    return True
