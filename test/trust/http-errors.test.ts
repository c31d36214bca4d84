/** What HTTP itself refuses has the error body of whoever refuses it: of a sled agent, and of the listener that sleds use. */
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ApiContext } from '../../api/context.ts';
import { type RunningSledListener, startSledListener } from '../../api/sled-listener.ts';
import { Authority } from '../../platform/identity/authority.ts';
import { becomeControlPlane } from '../../platform/identity/control-plane.ts';
import type { IdentityHolder } from '../../platform/identity/holder.ts';
import { Metrics } from '../../platform/telemetry/metrics.ts';
import { type SledAgentHandle, startSledAgent } from '../../sled-agent/server.ts';
import { type BrokenTarget, brokenBodies, brokenRequests, readMark, sendRaw } from '../support/broken-requests.ts';
import { Folders } from '../support/identities.ts';
import { ListeningControlPlane, loopbackAddress } from '../support/sled.ts';

/** As a sled agent writes its codes. */
const screaming = (name: string) => name.replace(/(?<=.)[A-Z]/g, (letter) => `_${letter}`).toUpperCase();
const id = randomUUID();

describe('a sled agent', () => {
  const plane = new ListeningControlPlane();
  let agent: SledAgentHandle;
  let target: BrokenTarget;
  beforeAll(async () => {
    await plane.listen();
    agent = await startSledAgent({
      name: 's',
      listen: `${loopbackAddress()}:0`,
      controlPlaneUrl: plane.url,
      threads: 1,
      memoryBytes: 2 ** 30,
      networkPollMs: 0,
    });
    target = {
      url: agent.url,
      headerBytes: 16 * 1024,
      bodyBytes: 1024 * 1024,
      path: `/vmms/${id}/state`,
      allow: ['GET', 'HEAD', 'PUT'],
      parent: '/vmms',
      put: { method: 'PUT', path: `/vmms/${id}` },
    };
  });
  afterAll(async () => {
    await agent?.stop();
    await plane.close();
  });

  test('answers what HTTP refuses with its own error body', async () => {
    for (const [what, { text, status, allow }] of [
      ...Object.entries(brokenRequests(target)),
      ...Object.entries(brokenBodies(target)),
    ]) {
      const answer = await sendRaw(target.url, text);
      expect([what, answer.status, answer.text]).toEqual([what, status, expect.stringContaining('error_code')]);
      const mark = readMark(answer, screaming);
      if (allow !== undefined) expect([what, mark.allow]).toEqual([what, [...allow].sort()]);
    }
  });

  test('says of a path that is not there that there is none, which is not the word that a VMM is gone', async () => {
    const answer = await fetch(`${agent.url}/nothing`);
    expect([answer.status, await answer.json()]).toEqual([
      404,
      { error_code: 'NOT_FOUND', message: expect.any(String), request_id: expect.any(String) },
    ]);
  });

  test('is commanded by no page in a browser', async () => {
    for (const [method, path] of [
      ['GET', '/vmms'],
      ['DELETE', `/vmms/${id}`],
      ['PUT', `/vmms/${id}/state`],
    ] as const)
      for (const headers of [
        { origin: 'http://evil.example' },
        { origin: 'null' },
        { 'sec-fetch-site': 'cross-site' },
      ]) {
        const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
        const request = `${method} ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n${lines.join('')}\r\n`;
        const answer = await sendRaw(agent.url, request);
        expect([method, headers, answer.status, JSON.parse(answer.text).error_code]).toEqual([
          method,
          headers,
          403,
          'NOT_THE_CONTROL_PLANE',
        ]);
      }
  });
});

describe('the listener of the sleds', () => {
  const folders = new Folders();
  let identity: IdentityHolder;
  let listener: RunningSledListener;
  let target: BrokenTarget;
  beforeAll(async () => {
    const authority = await Authority.openOrCreate(join(await folders.make(), 'authority'));
    identity = await becomeControlPlane(authority);
    // Nobody who shows no certificate gets as far as the database.
    const context = { log: pino({ level: 'silent' }), metrics: new Metrics() } as unknown as ApiContext;
    listener = await startSledListener({ authority, host: '127.0.0.1', port: 0 }, identity, context, 0);
    target = {
      url: listener.url,
      headerBytes: 16 * 1024,
      bodyBytes: 256 * 1024,
      path: '/sled-identity/join',
      allow: ['POST'],
      parent: '/vmms',
      put: { method: 'POST', path: '/sled-identity/join' },
    };
  });
  afterAll(async () => {
    await listener?.stop();
    identity?.stop();
    await folders.close();
  });

  test('answers what HTTP refuses with the error body of the API', async () => {
    const broken = { ...brokenRequests(target), ...brokenBodies(target) };
    for (const [what, { text, status, allow }] of Object.entries(broken)) {
      const answer = await sendRaw(target.url, text);
      // Where it gets as far as the question who asks, nobody is known: that comes first.
      if ([405, 414].includes(status) && answer.status === 401) {
        expect(JSON.parse(answer.text)).toMatchObject({ error_code: 'NO_CERTIFICATE', request_id: expect.any(String) });
        continue;
      }
      // TLS has cut the request into pieces: that its first line is what is too long can't be seen from the last one.
      const expected = status === 414 && what.includes('by itself') ? expect.toBeOneOf([414, 431]) : status;
      expect([what, answer.status, answer.text]).toEqual([what, expected, expect.stringContaining('error_code')]);
      const mark = readMark(answer, (name) => name);
      if (allow !== undefined) expect([what, mark.allow]).toEqual([what, [...allow].sort()]);
    }
  });
});
