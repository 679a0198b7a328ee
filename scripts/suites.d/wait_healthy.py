#!/usr/bin/env python3
"""Waits until `godrive status` has shown every chunk healthy, or fails at the deadline (seconds)."""
import json, subprocess, sys, time

godrive, home, deadline = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3])
repair_seen = False
while True:
    status = json.loads(subprocess.run([godrive, "status", "--dir", home, "--json"], check=True, capture_output=True).stdout)
    chunks = status["chunks"]
    repair_seen |= chunks["under_replicated"] > 0 or status["repair_active"] + status["repair_queued"] + status["repaired"] > 0
    if repair_seen and chunks["total"] > 0 and chunks["healthy"] == chunks["total"]:
        print(f"repair was seen, all {chunks['total']} chunks are healthy, {status['repaired']} repaired")
        break
    if time.monotonic() > deadline:
        sys.exit(f"not healthy within the deadline: {chunks}, repair seen: {repair_seen}")
    time.sleep(0.3)
