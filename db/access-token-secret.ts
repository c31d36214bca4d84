import { createHash, randomBytes } from 'node:crypto';

/** What every token begins with, so that people and secret scanners know one when they see it. */
export const TOKEN_PREFIX = 'mooring-token-';
/** 256 bits from the system's generator: nobody guesses one. */
const SECRET_BYTES = 32;

/** Makes the secret of a new token. It is shown to its owner once and stored by nobody else. */
export function makeTokenSecret(): string {
  return TOKEN_PREFIX + randomBytes(SECRET_BYTES).toString('base64url');
}

/**
 * What is stored of a token. A plain SHA-256 is right here: a slow, salted hash protects secrets that people choose and
 * that can be tried one by one; 256 random bits can't be, and this one is computed for every request.
 */
export function hashTokenSecret(secret: string): Buffer {
  return createHash('sha256').update(secret).digest();
}
