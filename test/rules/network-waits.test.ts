/**
 * That no wait on the network can be added without a limit: what opens a connection, or asks something over one, stands here with
 * what bounds it. `test/processes/black-holes.test.ts` tries them.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';

const ROOMS = [
  ...['activities', 'api', 'cli', 'client', 'db', 'doctor', 'platform', 'sled-agent', 'stack', 'temporal', 'wire'],
  ...['model', 'worker', 'workflows'],
];
const ROOT = join(import.meta.dirname, '../..');

/** What waits on a network, by how it is written. */
const WAYS: readonly RegExp[] = [
  /\bnew pg\.(?:Client|Pool)\(/g,
  /\bnew DatabaseClient\(/g,
  /\b(?:Native)?Connection\.(?:connect|lazy)\(/g,
  /(?<![.#\w]|async |\n {2})connect(?:Tcp|Tls)?\(/g,
  /\bcreateConnection\(/g,
  /\bnew (?:Socket|WebSocket|EventSource|TLSSocket)\(/g,
  /\bhttps?\.(?:request|get)\(/g,
];
/** Calls over HTTP: each must hand over a signal that is aborted at its limit. */
const CALLS = /(?<![.#\w])(?:request|fetch|stream|pipeline)\(/g;

/** Each file with such a wait: how many there are, and what bounds them. */
const BOUNDED: Readonly<Record<string, readonly [number, string]>> = {
  'activities/sled-client.ts': [1, 'a timer around the handshake'],
  'db/connect.ts': [3, 'DatabaseClient; the pool has the limits of its options'],
  'db/database-client.ts': [1, 'its own connect, wrapped: CONNECT_LIMIT_MS, and the limit of an answer'],
  'db/migrate.ts': [1, 'DatabaseClient'],
  'db/operation-outcomes.ts': [1, 'the socket of a DatabaseClient; each word has PROOF_MS'],
  'sled-agent/join.ts': [1, 'a timer of CALL_MS around the handshake'],
  'sled-agent/peer-transport.ts': [2, 'who dials sets DIAL_MS, and breaks silence after SILENCE_MS (hand-over.ts)'],
  'sled-agent/qemu/qmp-client.ts': [1, 'a UNIX socket of this machine; every command has a limit'],
  'sled-agent/vmm-store.ts': [1, 'a UNIX socket of this machine, whose listener is a kernel queue'],
  'stack/temporal-server.ts': [1, 'connectTimeout'],
  'temporal/connection.ts': [1, 'connectTimeout; each call has a deadline'],
  'temporal/native-connection.ts': [1, 'a timer around it'],
};

const sources = ROOMS.flatMap((room) =>
  readdirSync(join(ROOT, room), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => ({ file: join(room, name), text: withoutComments(readFileSync(join(ROOT, room, name), 'utf8')) })),
);

function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '');
}

test('every place that opens a connection is known, with what bounds it', () => {
  const found = Object.fromEntries(
    sources.flatMap(({ file, text }) => {
      const count = WAYS.reduce((sum, way) => sum + (text.match(way)?.length ?? 0), 0);
      return count === 0 ? [] : [[file, count]];
    }),
  );
  expect(
    found,
    'a new wait on the network: give it a limit, then a line in BOUNDED and a case in black-holes.test.ts',
  ).toEqual(Object.fromEntries(Object.entries(BOUNDED).map(([file, [count]]) => [file, count])));
});

test('every call over HTTP has a signal that ends it', () => {
  let calls = 0;
  const without = sources.flatMap(({ file, text }) =>
    [...text.matchAll(CALLS)]
      .filter(({ index }) => !isDeclaration(text, index))
      .flatMap((call) => {
        calls += 1;
        const whole = argumentsAt(text, call.index + call[0].length);
        return /\bsignal\b/.test(whole) ? [] : [`${file}: ${call[0]}${whole.slice(0, 60)}`];
      }),
  );
  expect(calls).toBeGreaterThan(8);
  expect(without).toEqual([]);
});

/** Whether what looks like a call declares something of that name. */
function isDeclaration(text: string, index: number): boolean {
  return /(?:function |async |\n {2})$/.test(text.slice(Math.max(0, index - 10), index));
}

/** The text from after an opening bracket to the one that closes it. */
function argumentsAt(text: string, start: number): string {
  let depth = 1;
  for (let at = start; at < text.length; at++) {
    if (text[at] === '(') depth += 1;
    if (text[at] === ')') depth -= 1;
    if (depth === 0) return text.slice(start, at);
  }
  return text.slice(start);
}
