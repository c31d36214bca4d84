/** Who is at the other end of a TLS connection, by its certificate. */
import type { PeerCertificate, TLSSocket } from 'node:tls';
import { describeIdentity, type Identity, type IdentityRefusal } from '../../model/identity.ts';
import { type CertificateFacts, readCertificate } from './certificates.ts';
import type { IdentityHolder } from './holder.ts';

/** The identity at the other end of a connection, or why there is none. */
type Peer =
  | { readonly identity: Identity; readonly serial: string; readonly refusal: null }
  | { readonly identity: null; readonly refusal: IdentityRefusal };

const facts = new WeakMap<TLSSocket, CertificateFacts>();

/**
 * Identifies the other end of a connection, whether or not TLS refuses unknown peers. The time, and whether the authority is still
 * trusted, are checked with each call: a connection can outlive either.
 */
export function identifyPeer(socket: TLSSocket, own: IdentityHolder): Peer {
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return refuse('no_certificate');
  if (!socket.authorized) {
    // Node gives the name of OpenSSL's error here, although the type declares an Error.
    return refuse(String(socket.authorizationError) === 'CERT_HAS_EXPIRED' ? 'expired' : 'other_authority');
  }
  let known = facts.get(socket);
  if (known === undefined) {
    known = readCertificate(Uint8Array.from(certificate.raw));
    facts.set(socket, known);
  }
  if (known.notAfter.getTime() <= Date.now()) return refuse('expired');
  if (!own.trusts(known.issuer)) return refuse('other_authority');
  if (known.identity === null) return refuse('wrong_identity');
  return { identity: known.identity, serial: known.serial, refusal: null };
}

function refuse(refusal: IdentityRefusal): Peer {
  return { identity: null, refusal };
}

/** The server that answered is not the one that was expected, though its certificate is the authority's. */
class WrongPeer extends Error {
  override readonly name = 'WrongPeer';
  readonly code = 'ERR_WRONG_PEER';
}

/**
 * Makes TLS's check of a server's identity from a rule. TLS has verified the chain and the time before; `isExpected` sees
 * who the certificate is of, and its serial number.
 */
export function expectPeer(
  expected: string,
  isExpected: (identity: Identity, serial: string) => boolean,
): (host: string, certificate: PeerCertificate) => Error | undefined {
  return (_host, certificate) => {
    const { identity, serial } = readCertificate(Uint8Array.from(certificate.raw));
    if (identity !== null && isExpected(identity, serial)) return undefined;
    const who = identity === null ? 'nobody that Mooring knows' : describeIdentity(identity);
    return new WrongPeer(`the certificate that was shown is of ${who}, not of ${expected}`);
  };
}
