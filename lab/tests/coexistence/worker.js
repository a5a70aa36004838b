// npm redlock as a program: node worker.js PACKAGE URL... It reads commands and writes one answer for each; see program.rs.
"use strict";

const Redis = require("ioredis");
const loaded = require(process.argv[2]);

// Version 5 is a module with a default export.
const Redlock = loaded.default ?? loaded;
const clients = process.argv.slice(3).map((url) => new Redis(url));
for (const client of clients) client.on("error", () => {}); // A node that is down.

const once = new Redlock(clients, { retryCount: 0 });
const patient = new Redlock(clients);
const locks = new Map(); // the last lock of each name, also after its release

const verbs = {
  try: async (name, ttl) => locks.set(name, await once.acquire([name], ttl)),
  wait: async (name, ttl) => {
    // A call ends after its retries. Version 5 removes what it has got at single nodes only then.
    for (let lock; !lock; ) {
      lock = await patient.acquire([name], ttl).catch(() => undefined);
      if (lock) locks.set(name, lock);
    }
  },
  extend: async (name, ttl) => locks.set(name, await once.extend(locks.get(name), ttl)),
  release: (name) => once.release(locks.get(name)),
};

async function main() {
  for await (const line of require("readline").createInterface({ input: process.stdin })) {
    const [verb, name, ttl] = line.split(" ");
    try {
      await verbs[verb](name, Number(ttl));
      console.log("yes");
    } catch (error) {
      console.log(`no: ${error.name}: ${error.message}`);
    }
  }
  process.exit(0);
}

main();
