/** Who may be at the end of a connection, and when a certificate is renewed: pure rules. */

/** A certificate's identity: what its subject alternative name says as a URI. */
export type Identity = { readonly kind: 'control_plane' } | { readonly kind: 'sled'; readonly sledId: string };

const CONTROL_PLANE_URI = 'mooring://control-plane';
const SLED_URI = /^mooring:\/\/sled\/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$/;
const OWN_SCHEME = 'mooring:';

/** The URI that stands for an identity in a certificate. */
export function identityUri(identity: Identity): string {
  return identity.kind === 'control_plane' ? CONTROL_PLANE_URI : `mooring://sled/${identity.sledId}`;
}

/**
 * Reads the identity out of the URIs of a certificate's subject alternative name. `null` unless exactly one of them is of
 * our scheme and says who it is: a certificate that claims to be two is nobody's.
 */
export function readIdentity(uris: readonly string[]): Identity | null {
  const own = uris.filter((uri) => uri.toLowerCase().startsWith(OWN_SCHEME));
  const [uri] = own;
  if (uri === undefined || own.length > 1) return null;
  if (uri === CONTROL_PLANE_URI) return { kind: 'control_plane' };
  const sledId = SLED_URI.exec(uri)?.[1];
  return sledId === undefined ? null : { kind: 'sled', sledId };
}

/** How an identity is called in messages. */
export function describeIdentity(identity: Identity): string {
  return identity.kind === 'control_plane' ? 'the control plane' : `sled ${identity.sledId}`;
}

/** The part of a certificate's life after which it is renewed. */
const RENEW_AFTER = 2 / 3;

/** When a certificate is to be renewed: at two thirds of its life, so that a third is left to try again in. */
export function renewalTime({ notBefore, notAfter }: { notBefore: Date; notAfter: Date }): Date {
  return new Date(notBefore.getTime() + (notAfter.getTime() - notBefore.getTime()) * RENEW_AFTER);
}

/**
 * Why a connection, or what came over it, is refused for the sake of identity.
 * `no_certificate`: none was shown. `other_authority`: not signed by this installation's. `expired`, `revoked`. `wrong_identity`:
 * it says another, or none. `expunged`: its sled was. `foreign_vmm`: the sled may not speak of this VMM.
 * `foreign_sled`: it may not speak for that sled. `foreign_agent`: an agent that is not the sled's own speaks of its VMM.
 */
export const IDENTITY_REFUSALS = [
  'no_certificate',
  'other_authority',
  'expired',
  'revoked',
  'wrong_identity',
  'expunged',
  'foreign_vmm',
  'foreign_sled',
  'foreign_agent',
] as const;
export type IdentityRefusal = (typeof IDENTITY_REFUSALS)[number];

/** What each refusal means, and what to do, in words for whoever reads the log of a sled agent. */
export function describeIdentityRefusal(refusal: IdentityRefusal): string {
  switch (refusal) {
    case 'no_certificate':
      return 'a certificate is needed: join the sled with a token of "mooring sled invite"';
    case 'other_authority':
      return 'the certificate is not signed by the authority of this installation: join the sled with a new token of "mooring sled invite"';
    case 'expired':
      return 'the certificate has expired: join the sled again with a new token of "mooring sled invite"';
    case 'revoked':
      return 'the certificate was revoked, or is not one that this installation knows: join the sled again with a new token of "mooring sled invite"';
    case 'wrong_identity':
      return 'the certificate is not that of a sled';
    case 'expunged':
      return 'the sled was expunged: it is no part of this installation any more, and ends its guests';
    case 'foreign_sled':
      return 'a sled speaks only for itself: the certificate that was shown is another sled’s';
    case 'foreign_agent':
      return 'the VMM is placed on a sled that has another agent: start that one, or this one with the data that it had';
    case 'foreign_vmm':
      return 'the VMM is not placed on this sled: a sled speaks only of its own';
  }
}
