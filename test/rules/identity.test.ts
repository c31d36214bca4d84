import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  describeIdentityRefusal,
  IDENTITY_REFUSALS,
  type Identity,
  identityUri,
  readIdentity,
  renewalTime,
} from '../../model/identity.ts';
import { readInviteToken, writeInviteToken } from '../../wire/invite-token.ts';

const identities: fc.Arbitrary<Identity> = fc.oneof(
  fc.constant<Identity>({ kind: 'control_plane' }),
  fc.uuid().map((sledId): Identity => ({ kind: 'sled', sledId })),
);

test('an identity is read as it was written, whatever other URIs stand beside it', () => {
  fc.assert(
    fc.property(identities, fc.array(fc.webUrl(), { maxLength: 3 }), (identity, others) => {
      expect(readIdentity([...others, identityUri(identity)])).toEqual(identity);
    }),
  );
});

test('a certificate that claims to be two, or none, is nobody’s', () => {
  fc.assert(
    fc.property(identities, identities, (one, other) => {
      expect(readIdentity([identityUri(one), identityUri(other)])).toBeNull();
    }),
  );
  const sled = 'mooring://sled/00000000-0000-4000-8000-000000000001';
  for (const uris of [
    [],
    ['https://control-plane'],
    ['mooring://control-plane/'],
    ['mooring://control-plane.example'],
    ['MOORING://control-plane'],
    ['mooring://sled/'],
    [`${sled}/x`],
    [`${sled.toUpperCase()}`],
    [sled, 'mooring://anything-else'],
    [sled, 'Mooring://control-plane'],
    [`x${sled}`],
    [`${sled}\n`],
  ])
    expect([uris, readIdentity(uris)]).toEqual([uris, null]);
});

test('a certificate is renewed at two thirds of its life', () => {
  const notBefore = new Date('2026-01-01T00:00:00Z');
  expect(renewalTime({ notBefore, notAfter: new Date('2026-01-31T00:00:00Z') })).toEqual(
    new Date('2026-01-21T00:00:00Z'),
  );
});

test('every refusal says what to do about it, in a message of its own', () => {
  const messages = IDENTITY_REFUSALS.map(describeIdentityRefusal);
  expect(new Set(messages).size).toBe(messages.length);
});

test('a token carries what was written into it, and nonsense is none', () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 32, maxLength: 32 }),
      fc.string({ minLength: 1, maxLength: 200 }),
      (hash, secret) => {
        const token = { url: 'https://127.0.0.1:1', authority: Buffer.from(hash).toString('hex'), secret };
        expect(readInviteToken(writeInviteToken(token))).toEqual(token);
      },
    ),
  );
  const good = { url: 'https://127.0.0.1:1', authority: 'a'.repeat(64), secret: 's' };
  for (const bad of [
    '',
    'mooring-sled-invite-',
    writeInviteToken(good).slice(0, -4),
    writeInviteToken({ ...good, url: 'http://127.0.0.1:1' }),
    writeInviteToken({ ...good, authority: 'a' }),
    writeInviteToken(good).replace('mooring', 'mooning'),
  ])
    expect(readInviteToken(bad)).toBeNull();
});
