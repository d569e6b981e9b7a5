#!/usr/bin/env node
// Queues a job with a plain Redis client: node producer.mjs [redis://127.0.0.1:6379] [queue name]. Needs `npm install ioredis`.
import { randomUUID } from "node:crypto";
import Redis from "ioredis";

const [url = "redis://127.0.0.1:6379", name = "jobs"] = process.argv.slice(2);
const client = new Redis(url);

const job = { id: randomUUID(), service: "simulation", payload: { steps: 1 }, priority: 5 };
await client
  .multi()
  .rpush(`{${name}}:inbox`, JSON.stringify(job))
  .publish(`{${name}}:wake`, "inbox")
  .exec();
console.log(job.id);
client.disconnect();
