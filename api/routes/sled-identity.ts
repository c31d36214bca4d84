import { randomBytes } from 'node:crypto';
import type { FastifyRequest } from 'fastify';
import { z } from 'zod';
import { hashTokenSecret } from '../../db/access-token-secret.ts';
import { findInvitedSled } from '../../db/queries/find-invited-sled.ts';
import { listCertificates } from '../../db/queries/list-certificates.ts';
import { readMigrationDestination } from '../../db/queries/read-migration-destination.ts';
import { readRevokedSerials } from '../../db/queries/read-revoked-serials.ts';
import { readSledAddress } from '../../db/queries/read-sled-address.ts';
import { createInvite } from '../../db/transactions/create-invite.ts';
import { joinSled } from '../../db/transactions/join-sled.ts';
import { renewCertificate } from '../../db/transactions/renew-certificate.ts';
import { revokeCertificates } from '../../db/transactions/revoke-certificates.ts';
import { Refusal } from '../../model/refusal.ts';
import { bundleFingerprints, type RequestedKey, readRequest } from '../../platform/identity/certificates.ts';
import { writeInviteToken } from '../../wire/invite-token.ts';
import {
  joinAnswer,
  joinRequest,
  migrationDestination,
  renewAnswer,
  renewRequest,
  revokedCertificates,
  sledCertificateList,
  sledInviteCreate,
  sledInviteView,
} from '../../wire/sled-identity.ts';
import { splitAddress } from '../../wire/sled-protocol.ts';
import { uuid } from '../../wire/uuid.ts';
import { bySled, changing } from '../audit.ts';
import type { ApiApp, ApiContext, SledJoining } from '../context.ts';
import { errors, IdentityRefused } from '../errors.ts';
import { askFormerAddress } from '../probe-sled.ts';

/** Where a sled joins: the one endpoint of the sled-facing listener that asks for no certificate. */
export const JOIN_PATH = '/sled-identity/join';
const SECRET_BYTES = 32;
/** Anybody may ask to join: no more than a request for a certificate needs, in bytes. */
const JOIN_BODY_BYTES = 256 * 1024;

/** A sled that has shown its certificate. */
export interface SledCaller {
  readonly sledId: string;
  readonly serial: string;
}

/** Adds the operators' endpoints of sleds' identities: invite, look at certificates, revoke them. */
export function addInviteRoutes(app: ApiApp, context: ApiContext): void {
  const { db } = context;
  const sledRoute = { tags: ['system'], params: z.object({ sled_id: uuid }) };

  app.post(
    '/v1/system/hardware/sled-invites',
    { schema: { tags: ['system'], body: sledInviteCreate, response: { 201: sledInviteView, ...errors } } },
    async (request, reply) => {
      request.audit?.about(request.body.name);
      const { sledJoining } = context;
      if (sledJoining === null) {
        throw Refusal.conflict(
          'this API has no certificate authority, so that sleds can\'t join it: start it with --authority, or a stack with "mooring up --sled-tls"',
        );
      }
      const { name, valid_seconds: validSeconds } = request.body;

      const secret = randomBytes(SECRET_BYTES).toString('base64url');
      const expires = await createInvite(changing(request, db), {
        sledName: name,
        secretHash: hashSecret(secret),
        validSeconds,
      });
      const { url, authority } = sledJoining;
      return reply.status(201).send({
        name,
        token: writeInviteToken({ url, authority: authority.fingerprint, secret }),
        url,
        authority_fingerprint: authority.fingerprint,
        time_expires: expires.toISOString(),
      });
    },
  );
  app.get(
    '/v1/system/hardware/sleds/:sled_id/certificates',
    { schema: { ...sledRoute, response: { 200: sledCertificateList, ...errors } } },
    async (request) => {
      const rows = await listCertificates(db, request.params.sled_id);
      return {
        items: rows.map((row) => ({
          serial: row.serial,
          time_issued: row.timeIssued.toISOString(),
          time_expires: row.timeExpires.toISOString(),
          time_revoked: row.timeRevoked?.toISOString() ?? null,
        })),
      };
    },
  );
  app.post(
    '/v1/system/hardware/sleds/:sled_id/revoke-certificates',
    { schema: { ...sledRoute, response: { 200: z.object({ revoked: z.number().int() }), ...errors } } },
    async (request) => ({ revoked: await revokeCertificates(changing(request, db), request.params.sled_id) }),
  );
}

/** Adds the endpoints by which a sled joins and keeps its identity. `caller` is the sled that has shown its certificate. */
export function addSledIdentityRoutes(
  app: ApiApp,
  { db, log, sleds }: ApiContext,
  { authority }: Pick<SledJoining, 'authority'>,
  caller: (request: FastifyRequest) => SledCaller,
): void {
  const tags = ['sled agents'];
  const authorities = bundleFingerprints(authority.trustedPem);

  app.post(
    JOIN_PATH,
    { bodyLimit: JOIN_BODY_BYTES, schema: { tags, body: joinRequest, response: { 200: joinAnswer, ...errors } } },
    async (request) => {
      const { secret, request: pem, address, agent_id: agentId, vmm_ids: vmmIds, threads, memory } = request.body;
      const requested = await requireRequest(pem);
      const { host } = splitAddress(address);
      const invited = { secretHash: hashSecret(secret), keyFingerprint: requested.fingerprint };
      // Nobody without an invitation has a sled asked.
      const known = await findInvitedSled(db, invited);
      const moves = known !== null && known.address !== address;
      const joined = await joinSled(
        bySled(request, db, 'sled_join', null),
        {
          ...invited,
          address,
          former: moves ? await askFormerAddress(sleds, known) : null,
          agentId: agentId ?? null,
          vmmIds: vmmIds ?? null,
          threads,
          memoryBytes: memory,
        },
        (sledId) => authority.issue(requested.request.publicKey, { kind: 'sled', sledId }, [host]),
      );
      const { sledId, name, certificate } = joined;
      log.info({ sled_id: sledId, sled: name, serial: certificate.serial }, 'a sled has joined');
      if (moves)
        log.warn(
          { sled_id: sledId, sled: name, former: known.address, address },
          'a sled is at another address since it joined again: should an agent of it come back at the former one, end it there',
        );
      return { sled_id: sledId, name, certificate: certificate.pem, authority: authority.trustedPem };
    },
  );
  app.post(
    '/sled-identity/renew',
    { schema: { tags, body: renewRequest, response: { 200: renewAnswer, ...errors } } },
    async (request) => {
      const holder = caller(request);
      const requested = await requireRequest(request.body.request);
      const address = await readSledAddress(db, holder.sledId);
      const certificate = await authority.issue(
        requested.request.publicKey,
        { kind: 'sled', sledId: holder.sledId },
        address === null ? [] : [splitAddress(address).host],
      );
      if (!(await renewCertificate(bySled(request, db, 'sled_certificate_renew', holder.sledId), holder, certificate)))
        throw new IdentityRefused('revoked');
      log.info({ sled_id: holder.sledId, serial: certificate.serial }, 'a certificate was renewed');
      return { certificate: certificate.pem, authority: authority.trustedPem };
    },
  );
  app.get(
    '/sled-identity/vmms/:vmm_id/migrations/:migration_id',
    {
      schema: {
        tags,
        params: z.object({ vmm_id: uuid, migration_id: uuid }),
        response: { 200: migrationDestination, ...errors },
      },
    },
    async (request) => {
      const { vmm_id: sourceVmmId, migration_id: migrationId } = request.params;
      const { sledId: sourceSledId } = caller(request);
      const destination = await readMigrationDestination(db, { migrationId, sourceVmmId, sourceSledId });
      if (destination === null) throw Refusal.notFound('migration out of this VMM', migrationId);
      return { sled_id: destination };
    },
  );
  app.get(
    '/sled-identity/revoked',
    { schema: { tags, response: { 200: revokedCertificates, ...errors } } },
    async () => ({ serials: await readRevokedSerials(db), authorities: await authorities }),
  );
}

async function requireRequest(pem: string): Promise<RequestedKey> {
  const requested = await readRequest(pem);
  if (requested === null)
    throw Refusal.invalid('request: must be a certificate request (PKCS #10, PEM) for an ECDSA key on P-256');
  return requested;
}

/** As it is kept, in hexadecimal. */
const hashSecret = (secret: string) => hashTokenSecret(secret).toString('hex');
