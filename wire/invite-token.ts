/** The token by which a server joins as a sled: where the control plane is, how it is known, and the secret. */
import { z } from 'zod';

/** What an invitation's token carries. */
const inviteToken = z.object({
  /** The version of the token. */
  v: z.literal(1),
  /** The sled-facing listener of the control plane. */
  url: z.url({ protocol: /^https$/ }),
  /** SHA-256 of the authority's certificate, in hexadecimal. */
  authority: z.string().regex(/^[0-9a-f]{64}$/),
  secret: z.string().min(1).max(256),
});
export type InviteToken = Omit<z.infer<typeof inviteToken>, 'v'>;

/** So that a secret scanner, and a person, sees what it is. */
const TOKEN_PREFIX = 'mooring-sled-invite-';

/** Writes an invitation's token. */
export function writeInviteToken(token: InviteToken): string {
  return TOKEN_PREFIX + Buffer.from(JSON.stringify({ v: 1, ...token })).toString('base64url');
}

/** Reads an invitation's token; `null` when it is none. What was given is never repeated: it is a secret. */
export function readInviteToken(text: string): InviteToken | null {
  if (!text.startsWith(TOKEN_PREFIX)) return null;
  try {
    const { v: _, ...token } = inviteToken.parse(
      JSON.parse(Buffer.from(text.slice(TOKEN_PREFIX.length), 'base64url').toString('utf8')),
    );
    return token;
  } catch {
    return null;
  }
}
