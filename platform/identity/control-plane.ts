import type { Authority } from './authority.ts';
import { makeKeyPair } from './certificates.ts';
import { IdentityHolder, type IdentityMaterial } from './holder.ts';

/**
 * Gives this process the control plane's identity: a key of its own that is only in its memory, signed by the authority,
 * and renewed before it expires. `hosts` are the IP addresses and names at which sleds find it.
 */
export async function becomeControlPlane(authority: Authority, hosts: readonly string[] = []): Promise<IdentityHolder> {
  const issue = async (): Promise<IdentityMaterial> => {
    const pair = await makeKeyPair();
    const { pem } = await authority.issue(pair.keys.publicKey, { kind: 'control_plane' }, hosts);
    return { privateKeyPem: pair.privateKeyPem, certificatePem: pem, authorityPem: authority.trustedPem };
  };
  return new IdentityHolder(await issue(), issue);
}
