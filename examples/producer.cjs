#!/usr/bin/env node
// Queues a job with a plain Redis client: node producer.cjs [redis://127.0.0.1:6379] [queue name]. Needs `npm install redis`.
const { randomUUID } = require("node:crypto");
const { createClient } = require("redis");

async function main([url = "redis://127.0.0.1:6379", name = "jobs"]) {
  const client = createClient({ url });
  await client.connect();
  const job = { id: randomUUID(), service: "simulation", payload: { steps: 1 }, priority: 5 };
  await client
    .multi()
    .rPush(`{${name}}:inbox`, JSON.stringify(job))
    .publish(`{${name}}:wake`, "inbox")
    .exec();
  console.log(job.id);
  await client.quit();
}

main(process.argv.slice(2));
