import { randomUUID } from 'node:crypto';
import { and, eq, ne, sql } from 'drizzle-orm';
import { Refusal } from '../../model/refusal.ts';
import type { Database } from '../connect.ts';
import { violatedConstraint } from '../errors.ts';
import { sled, sledCertificate, sledInvite } from '../schema.ts';
import { type FormerAddress, moveVmmsOf, portTaken, requireMayMove } from './move-sled.ts';

export interface JoiningSled {
  /** SHA-256 of the invitation's secret, in hexadecimal. */
  readonly secretHash: string;
  /** SHA-256 of the public key to sign, in hexadecimal. */
  readonly keyFingerprint: string;
  readonly address: string;
  /** Of the agent that will run there, where it says so. */
  readonly agentId: string | null;
  /** The VMMs in its records; `null`: it doesn't say. */
  readonly vmmIds: readonly string[] | null;
  readonly threads: number;
  readonly memoryBytes: number;
  /** Of the sled of that name that is there already, at another address; `null`: there was none. */
  readonly former: FormerAddress | null;
}

/**
 * Uses an invitation up and puts the sled in service, all in one transaction with the record of its certificate, which
 * `sign` makes. A sled of that name that is there already keeps its id, and its former certificates are revoked; its VMMs are at
 * its new address from then on. With VMMs it joins again, also at the address that it had, only where its agent is the same by
 * its id, and has them; it joins nowhere else while an agent answers where it was, which may be the one that has the guests. The
 * same key with the same invitation again is the same call, whose answer was lost. Throws a {@link Refusal}.
 */
export async function joinSled<Certificate extends { readonly serial: string; readonly notAfter: Date }>(
  db: Database,
  joining: JoiningSled,
  sign: (sledId: string) => Promise<Certificate>,
): Promise<{ sledId: string; name: string; certificate: Certificate }> {
  const { secretHash, keyFingerprint, address, agentId, vmmIds, threads, memoryBytes, former } = joining;
  try {
    return await db.transaction(async (transaction) => {
      const [found] = await transaction
        .select({ invite: sledInvite, expired: sql<boolean>`time_expires <= now()` })
        .from(sledInvite)
        .where(eq(sledInvite.secretHash, secretHash))
        .for('update');
      // None of these discloses more of the invitation than whoever has the token knows.
      if (found === undefined) throw refuseToken('is not one of this installation');
      const { invite, expired } = found;
      if (expired) throw refuseToken('has expired');
      if (invite.timeUsed !== null && invite.keyFingerprint !== keyFingerprint) throw refuseToken('was used before');
      const joined = {
        ...{ address, agentId, keptAgentId: agentId, threads, memoryBytes, identified: true },
        anotherAnswers: false,
      };
      const [known] = await transaction
        .select({
          id: sled.id,
          name: sled.name,
          address: sled.address,
          agentId: sled.agentId,
          expungingSince: sled.expungingSince,
        })
        .from(sled)
        .where(and(eq(sled.name, invite.sledName), ne(sled.policy, 'expunged')))
        .for('update');
      if (invite.timeUsed !== null && known?.id !== invite.sledId) throw refuseToken('was used before');
      if (known !== undefined && known.expungingSince !== null)
        throw Refusal.conflict(
          `sled "${invite.sledName}" was expunged, and its guests may run still: join again when it is gone for good, or as a sled of another name`,
        );
      // The address proves nothing: a host may have new data, and a name another host. Of an agent that has never said who it
      // is, nor what it has, nothing can be asked. Nobody gives a word for that here: "declare-dead" takes it.
      const isSilent = known?.agentId == null && agentId === null && vmmIds === null;
      if (known !== undefined && (known.address !== address || !isSilent))
        await requireMayMove(transaction, known, {
          ...{ to: address, agentId, vmmIds, poweredOff: false },
          // At its own address it may be the agent that joins which answers.
          former: known.address === address ? null : former,
        });
      const sledId = known?.id ?? randomUUID();
      if (known === undefined) await transaction.insert(sled).values({ id: sledId, name: invite.sledName, ...joined });
      else {
        await transaction
          .update(sled)
          .set({ ...joined, timeModified: sql`now()` })
          .where(eq(sled.id, sledId));
        await moveVmmsOf(transaction, sledId, address);
        await transaction.execute(sql`/* join-sled */
          UPDATE sled_certificate SET time_revoked = now() WHERE sled_id = ${sledId} AND time_revoked IS NULL`);
      }
      const certificate = await sign(sledId);
      await transaction
        .insert(sledCertificate)
        .values({ serial: certificate.serial, sledId, timeExpires: certificate.notAfter });
      await transaction
        .update(sledInvite)
        .set({ timeUsed: sql`now()`, sledId, keyFingerprint })
        .where(eq(sledInvite.id, invite.id));
      return { sledId, name: invite.sledName, certificate };
    });
  } catch (error) {
    switch (violatedConstraint(error)) {
      case 'sled_address':
        throw Refusal.nameTaken('sled at address', address);
      case 'sled_agent':
        throw Refusal.conflict(
          `address: the agent that joins at ${address} is that of another sled: one host is one sled; join as that one, or expunge it first`,
        );
      case 'vmm_address':
        throw portTaken(address);
      case 'sled_name':
        throw Refusal.conflict('the sled is joining elsewhere at this moment: try again');
      case 'sled_capacity':
        throw Refusal.conflict(
          'threads, memory: less than what the VMs on this sled hold: give it at least as much as before, or drain it first',
        );
      default:
        throw error;
    }
  }
}

function refuseToken(why: string): Refusal {
  return Refusal.unauthorized(`the token ${why}: "mooring sled invite NAME" makes a new one`);
}
