#!/usr/bin/env python3
"""Queues a job with a plain Redis client: python3 producer.py [redis://127.0.0.1:6379] [queue name]. Needs `pip install redis`."""

import json
import sys
import uuid

import redis

url = sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6379"
queue = "{%s}" % (sys.argv[2] if len(sys.argv) > 2 else "jobs")
client = redis.Redis.from_url(url, decode_responses=True)

job = {"id": str(uuid.uuid4()), "service": "simulation", "payload": {"steps": 1}, "priority": 5}
with client.pipeline(transaction=True) as pipe:
    pipe.rpush(f"{queue}:inbox", json.dumps(job))
    pipe.publish(f"{queue}:wake", "inbox")
    pipe.execute()
print(job["id"])
