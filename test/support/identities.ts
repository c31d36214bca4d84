/** Identities for tests: sleds that join without an agent, strangers, and calls that show what they have. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Agent, request } from 'undici';
import type { MooringClient } from '../../client/mooring-client.ts';
import type { Identity } from '../../model/identity.ts';
import { freePort } from '../../platform/host/child-process.ts';
import { Authority } from '../../platform/identity/authority.ts';
import { makeKeyPair } from '../../platform/identity/certificates.ts';
import type { IdentityMaterial } from '../../platform/identity/holder.ts';
import type { StoredIdentity } from '../../sled-agent/identity-file.ts';
import { joinSled } from '../../sled-agent/join.ts';
import { loopbackAddress } from './sled.ts';

export const GIBIBYTE = 1024 ** 3;

/** Folders that `close` removes. */
export class Folders {
  readonly #paths: string[] = [];

  async make(): Promise<string> {
    const path = await mkdtemp(join(tmpdir(), 'mooring-trust-'));
    this.#paths.push(path);
    return path;
  }

  async close(): Promise<void> {
    await Promise.all(this.#paths.map((path) => rm(path, { recursive: true, force: true })));
  }
}

/** An authority that is not the installation's. */
export async function strangeAuthority(folders: Folders): Promise<Authority> {
  return Authority.openOrCreate(join(await folders.make(), 'authority'));
}

/** A key and certificate that an authority issues for this identity. */
export async function materialOf(
  authority: Authority,
  identity: Identity,
  hosts: readonly string[] = [],
): Promise<IdentityMaterial & { serial: string; notAfter: Date }> {
  const pair = await makeKeyPair();
  const { pem, serial, notAfter } = await authority.issue(pair.keys.publicKey, identity, hosts);
  return {
    privateKeyPem: pair.privateKeyPem,
    certificatePem: pem,
    authorityPem: authority.certificatePem,
    serial,
    notAfter,
  };
}

/** Lets a sled join that has no agent; as small as one can be, so that nothing is placed there. */
export async function joinedWithoutAgent(
  client: MooringClient,
  folders: Folders,
  name: string,
): Promise<StoredIdentity> {
  const { token } = await client.inviteSled({ name });
  const host = loopbackAddress();
  return joinSled({
    token,
    folder: await folders.make(),
    address: `${host}:${await freePort(host)}`,
    threads: 1,
    memoryBytes: GIBIBYTE / 8,
  });
}

export interface Answer {
  readonly status: number;
  readonly body: { error_code?: string; message?: string; [field: string]: unknown };
}

/** Calls with what somebody has; does not look at who answers. Throws what TLS says. */
export class Caller {
  readonly #agent: Agent;

  constructor(material: IdentityMaterial | null) {
    this.#agent = new Agent({
      connections: 1,
      keepAliveTimeout: 60_000,
      connect: {
        rejectUnauthorized: false,
        ...(material === null ? {} : { key: material.privateKeyPem, cert: material.certificatePem }),
      },
    });
  }

  async call(method: 'GET' | 'PUT' | 'POST' | 'DELETE', url: string, body?: unknown): Promise<Answer> {
    const response = await request(url, {
      method,
      dispatcher: this.#agent,
      ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(20_000),
    });
    const text = await response.body.text();
    return { status: response.statusCode, body: text === '' ? {} : JSON.parse(text) };
  }

  close(): Promise<void> {
    return this.#agent.destroy();
  }
}

/** Calls once. */
export async function callAs(
  material: IdentityMaterial | null,
  method: 'GET' | 'PUT' | 'POST' | 'DELETE',
  url: string,
  body?: unknown,
): Promise<Answer> {
  const caller = new Caller(material);
  try {
    return await caller.call(method, url, body);
  } finally {
    await caller.close();
  }
}
