/** Keys, requests and certificates, by @peculiar/x509 on the platform's own cryptography (WebCrypto). */
// Before @peculiar/x509: tsyringe below it throws when it is loaded without this polyfill.
import 'reflect-metadata';
import { randomBytes, webcrypto } from 'node:crypto';
import { isIP } from 'node:net';
import {
  BasicConstraintsExtension,
  cryptoProvider,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  type JsonGeneralName,
  KeyUsageFlags,
  KeyUsagesExtension,
  PemConverter,
  Pkcs10CertificateRequest,
  Pkcs10CertificateRequestGenerator,
  SubjectAlternativeNameExtension,
  X509Certificate,
  X509CertificateGenerator,
} from '@peculiar/x509';
import { type Identity, identityUri, readIdentity } from '../../model/identity.ts';

cryptoProvider.set(webcrypto as unknown as Parameters<typeof cryptoProvider.set>[1]);

/** ECDSA on P-256: what every TLS library verifies. */
const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
/** How far the clocks of two servers may be apart, in milliseconds: a new certificate is already good on the slower one. */
const CLOCK_SKEW_MS = 60_000;

/** A key pair that was made here. */
interface KeyPair {
  readonly privateKeyPem: string;
  readonly keys: webcrypto.CryptoKeyPair;
}

/** Makes a key pair. The private key leaves the process only by {@link KeyPair.privateKeyPem}. */
export async function makeKeyPair(): Promise<KeyPair> {
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']);
  return {
    keys,
    privateKeyPem: PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', keys.privateKey), 'PRIVATE KEY'),
  };
}

/** A request (PKCS #10, PEM) to have a key signed; its signature proves that the private key is there. */
export async function makeRequest({ keys }: KeyPair): Promise<string> {
  const request = await Pkcs10CertificateRequestGenerator.create({
    name: 'CN=mooring sled',
    keys,
    signingAlgorithm: ALGORITHM,
  });
  return request.toString('pem');
}

/** A public key that may be signed. */
export interface RequestedKey {
  readonly request: Pkcs10CertificateRequest;
  /** SHA-256 of the public key, in hexadecimal. */
  readonly fingerprint: string;
}

/** Reads a request (PEM). `null` when it is not one, its signature is wrong, or its key is not one that we use. */
export async function readRequest(pem: string): Promise<RequestedKey | null> {
  try {
    const request = new Pkcs10CertificateRequest(pem);
    const { name, namedCurve } = request.publicKey.algorithm as { name?: string; namedCurve?: string };
    if (name !== ALGORITHM.name || namedCurve !== ALGORITHM.namedCurve || !(await request.verify())) return null;
    return { request, fingerprint: await fingerprintOf(request.publicKey.rawData) };
  } catch {
    return null;
  }
}

/** A certificate as it was signed. */
export interface IssuedCertificate {
  readonly pem: string;
  /** In hexadecimal. */
  readonly serial: string;
  readonly notBefore: Date;
  readonly notAfter: Date;
}

/** The key and certificate of an authority. */
export interface AuthorityKeys {
  readonly certificate: X509Certificate;
  readonly privateKey: webcrypto.CryptoKey;
}

/**
 * Makes an authority's self-signed certificate, good for `lifetimeMs` milliseconds. It may sign certificates of sleds and of the
 * control plane, but no further authorities.
 */
export async function makeAuthorityCertificate(pair: KeyPair, lifetimeMs: number): Promise<string> {
  const now = Date.now();
  const serialNumber = makeSerial();
  const certificate = await X509CertificateGenerator.createSelfSigned({
    serialNumber,
    // Each has a name of its own: TLS finds the one that has signed a certificate by it.
    name: `CN=Mooring authority ${serialNumber.slice(0, 8)}`,
    notBefore: new Date(now - CLOCK_SKEW_MS),
    notAfter: new Date(now + lifetimeMs),
    keys: pair.keys,
    signingAlgorithm: ALGORITHM,
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
    ],
  });
  return certificate.toString('pem');
}

/** Reads an authority's certificate and private key (both PEM). Throws when they can't be read, or don't belong together. */
export async function readAuthorityKeys(certificatePem: string, privateKeyPem: string): Promise<AuthorityKeys> {
  const certificate = new X509Certificate(certificatePem);
  const privateKey = await webcrypto.subtle.importKey(
    'pkcs8',
    PemConverter.decodeFirst(privateKeyPem),
    ALGORITHM,
    false,
    ['sign'],
  );
  const publicKey = await certificate.publicKey.export(ALGORITHM, ['verify']);
  const probe = randomBytes(32);
  const signature = await webcrypto.subtle.sign(ALGORITHM, privateKey, probe);
  if (!(await webcrypto.subtle.verify(ALGORITHM, publicKey, signature, probe)))
    throw new Error('the private key is not that of the certificate');
  return { certificate, privateKey };
}

/**
 * Signs a public key for an identity that may be both ends of a TLS connection. `hosts` are the IP addresses and names at
 * which it is found; the subject and extensions of the request are ignored. `lifetimeMs` in milliseconds, cut at the
 * end of the authority's own life.
 */
export async function issueCertificate(
  authority: AuthorityKeys,
  publicKey: RequestedKey['request']['publicKey'] | webcrypto.CryptoKey,
  identity: Identity,
  hosts: readonly string[],
  lifetimeMs: number,
): Promise<IssuedCertificate> {
  const now = Date.now();
  const serial = makeSerial();
  const notBefore = new Date(
    Math.max(now - Math.min(CLOCK_SKEW_MS, lifetimeMs), authority.certificate.notBefore.getTime()),
  );
  const notAfter = new Date(Math.min(now + lifetimeMs, authority.certificate.notAfter.getTime()));
  const names: JsonGeneralName[] = [
    { type: 'url', value: identityUri(identity) },
    ...hosts.map((value): JsonGeneralName => ({ type: isIP(value) === 0 ? 'dns' : 'ip', value })),
  ];
  const certificate = await X509CertificateGenerator.create({
    serialNumber: serial,
    subject: certificateSubject(identity),
    issuer: authority.certificate.subject,
    notBefore,
    notAfter,
    publicKey,
    signingKey: authority.privateKey,
    signingAlgorithm: ALGORITHM,
    extensions: [
      new BasicConstraintsExtension(false, undefined, true),
      new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
      new ExtendedKeyUsageExtension([ExtendedKeyUsage.serverAuth, ExtendedKeyUsage.clientAuth]),
      new SubjectAlternativeNameExtension(names),
    ],
  });
  return { pem: certificate.toString('pem'), serial, notBefore, notAfter };
}

/** The subject of an identity's certificates, as RFC 4514 writes it. */
export function certificateSubject(identity: Identity): string {
  return identity.kind === 'sled' ? `CN=Mooring sled ${identity.sledId}` : 'CN=Mooring control plane';
}

/** The fields of a certificate that we use. `identity` is `null` when it names none of Mooring. */
export interface CertificateFacts {
  readonly identity: Identity | null;
  readonly serial: string;
  /** The name of the authority that has signed it. */
  readonly issuer: string;
  /** Its own name. */
  readonly subject: string;
  readonly notBefore: Date;
  readonly notAfter: Date;
}

/** Reads a certificate (PEM or DER); its signature was verified by TLS. Throws when it can't be read. */
export function readCertificate(certificate: string | Uint8Array<ArrayBuffer>): CertificateFacts {
  const parsed = new X509Certificate(certificate);
  const names = parsed.getExtension(SubjectAlternativeNameExtension)?.names.toJSON() ?? [];
  return {
    identity: readIdentity(names.flatMap((name) => (name.type === 'url' ? [name.value] : []))),
    serial: parsed.serialNumber,
    issuer: parsed.issuer,
    subject: parsed.subject,
    notBefore: parsed.notBefore,
    notAfter: parsed.notAfter,
  };
}

/** SHA-256 of a certificate (PEM or DER), in hexadecimal. */
export async function certificateFingerprint(certificate: string | Uint8Array<ArrayBuffer>): Promise<string> {
  return fingerprintOf(new X509Certificate(certificate).rawData);
}

/** The certificates of a bundle (PEM), each in PEM, in its order. */
export function splitBundle(bundle: string): string[] {
  return bundle.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
}

/** SHA-256 of each certificate of a bundle (PEM), in hexadecimal, in its order. */
export function bundleFingerprints(bundle: string): Promise<string[]> {
  return Promise.all(splitBundle(bundle).map((pem) => certificateFingerprint(pem)));
}

async function fingerprintOf(data: ArrayBuffer): Promise<string> {
  return Buffer.from(await webcrypto.subtle.digest('SHA-256', data)).toString('hex');
}

/**
 * 126 random bits: positive, and never with a leading zero byte, so that it is written the same everywhere. Source: RFC
 * 5280, 4.1.2.2.
 */
function makeSerial(): string {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40;
  return bytes.toString('hex');
}
