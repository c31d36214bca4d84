/** The words of the OpenAPI document: each endpoint has them, and its example is what it takes. */
import { expect, test } from 'vitest';
import type { z } from 'zod';
import { WORDS } from '../../api/document-words.ts';
import { PERMISSIONS } from '../../model/permissions.ts';
import { leaseRenewal } from '../../wire/lease-protocol.ts';
import { accessTokenCreate } from '../../wire/operator-api/access-tokens.ts';
import { affinityGroupCreate, affinityGroupUpdate } from '../../wire/operator-api/affinity-groups.ts';
import { drainBegin } from '../../wire/operator-api/drains.ts';
import {
  instanceCreate,
  instanceForceStop,
  instanceMigrate,
  instanceUpdate,
} from '../../wire/operator-api/instances.ts';
import { projectCreate, projectUpdate, quotaUpdate } from '../../wire/operator-api/projects.ts';
import { reconcilerUpdate } from '../../wire/operator-api/reconcilers.ts';
import {
  provisionPolicyParams,
  sledAdd,
  sledDeclareDead,
  sledExpunge,
  sledSetAddress,
} from '../../wire/operator-api/sleds.ts';
import { sledInviteCreate } from '../../wire/sled-identity.ts';
import { sledVmmState } from '../../wire/sled-protocol.ts';

const HIDDEN = ['openapi', 'healthz', 'readyz', 'console', 'api_docs', 'console_file'];
const BODIES: Readonly<Record<string, z.ZodType>> = {
  project_create: projectCreate,
  project_update: projectUpdate,
  project_quota_update: quotaUpdate,
  instance_create: instanceCreate,
  instance_update: instanceUpdate,
  instance_force_stop: instanceForceStop,
  instance_migrate: instanceMigrate,
  affinity_group_create: affinityGroupCreate,
  affinity_group_update: affinityGroupUpdate,
  anti_affinity_group_create: affinityGroupCreate,
  anti_affinity_group_update: affinityGroupUpdate,
  sled_add: sledAdd,
  sled_set_address: sledSetAddress,
  sled_set_provision_policy: provisionPolicyParams,
  sled_drain_begin: drainBegin,
  sled_declare_dead: sledDeclareDead,
  sled_expunge: sledExpunge,
  sled_invite_create: sledInviteCreate,
  reconciler_update: reconcilerUpdate,
  access_token_create: accessTokenCreate,
  sled_lease_renew: leaseRenewal,
  vmm_report: sledVmmState,
};

test('every endpoint has its words, and nothing else has', () => {
  const operations = Object.values(PERMISSIONS).map(({ operation }) => operation);
  expect(Object.keys(WORDS).sort()).toEqual(operations.filter((operation) => !HIDDEN.includes(operation)).sort());
  for (const { summary } of Object.values(WORDS)) expect(summary).toMatch(/^[A-Z].{8,90}[^.]$/);
});

test('every example is what its endpoint takes, as it stands there', () => {
  const examples = Object.entries(WORDS).flatMap(([operation, { example }]) =>
    example === undefined ? [] : [[operation, example] as const],
  );
  expect(examples.map(([operation]) => operation).sort()).toEqual(Object.keys(BODIES).sort());
  for (const [operation, example] of examples) {
    const read = BODIES[operation]?.safeParse(example);
    expect([operation, read?.error?.issues]).toEqual([operation, undefined]);
    // Nothing in it is left out as unknown.
    expect(read?.data).toMatchObject(example as object);
  }
});
