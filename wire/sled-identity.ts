/**
 * How a sled gets its identity and keeps it: the one-time token of an invitation, and the requests of the sled-facing
 * listener. All JSON, snake_case.
 */
import { z } from 'zod';
import { resourceName } from './operator-api/names.ts';
import { sledCapacity } from './operator-api/sleds.ts';
import { socketAddress, timestamp } from './sled-protocol.ts';
import { uuid } from './uuid.ts';

/** How long an invitation is good, in seconds: an hour by default, a week at most. */
const DEFAULT_INVITE_SECONDS = 3600;
const MAX_INVITE_SECONDS = 7 * 24 * 3600;

/** A sled is invited by name; one of that name that is there already gets a new identity by it. */
export const sledInviteCreate = z.object({
  name: resourceName,
  valid_seconds: z.number().int().min(1).max(MAX_INVITE_SECONDS).default(DEFAULT_INVITE_SECONDS),
});
export type SledInviteCreate = z.input<typeof sledInviteCreate>;

/** An invitation. The token is shown this once. */
export const sledInviteView = z.object({
  name: z.string(),
  token: z.string(),
  /** Where the sled joins. */
  url: z.url(),
  /** SHA-256 of the authority's certificate, in hexadecimal. */
  authority_fingerprint: z.string(),
  time_expires: timestamp,
});
export type SledInviteView = z.infer<typeof sledInviteView>;

const sledCertificateView = z.object({
  serial: z.string(),
  time_issued: timestamp,
  time_expires: timestamp,
  time_revoked: timestamp.nullable(),
});
export const sledCertificateList = z.object({ items: z.array(sledCertificateView) });
export type SledCertificateView = z.infer<typeof sledCertificateView>;

const pem = z.string().min(1).max(16_384);

/** How many VMMs a sled that joins can name; one with more does not say what it has. */
export const MAX_JOINING_VMMS = 5_000;

export const joinRequest = z.object({
  /** The token's secret. */
  secret: z.string().min(1).max(256),
  /** PKCS #10, PEM. */
  request: pem,
  address: socketAddress,
  /** Of the agent that will listen there (`agentDescription`). */
  agent_id: uuid.nullish(),
  /** The VMMs that are in its records: a sled that joins again at another address must have those that live on it. */
  vmm_ids: z.array(uuid).max(MAX_JOINING_VMMS).nullish(),
  ...sledCapacity,
});
export type JoinRequest = z.infer<typeof joinRequest>;
export const joinAnswer = z.object({ sled_id: uuid, name: z.string(), certificate: pem, authority: pem });

export const renewRequest = z.object({ request: pem });
export const renewAnswer = z.object({ certificate: pem, authority: pem });

/** The certificates that haven't expired and are good no more, by their serial numbers. */
export const revokedCertificates = z.object({
  serials: z.array(z.string()),
  /**
   * The authorities that the control plane trusts, by the SHA-256 of their certificates (hexadecimal), the one that signs first. An
   * agent that trusts others renews its certificate, which tells it all of them.
   */
  authorities: z.array(z.string()).nullish(),
});

/** Where a migration out of a VMM goes: the source hands its guest to that sled alone. */
export const migrationDestination = z.object({ sled_id: uuid });
