import type { Command } from 'commander';
import { type ApiOptions, contextOf, findSled, withApiOptions } from '../context.ts';
import { printJson, table } from '../output.ts';
import { SUMMARIES } from '../summaries.ts';

/** Adds `mooring sled invite`, `certificates` and `revoke`. */
export function addSledIdentityCommands(sled: Command): void {
  withApiOptions(sled.command('invite <name>'))
    .description('print the one-time token by which a server joins as this sled')
    .option('--valid <seconds>', 'how long the token is good', Number, 3600)
    .addHelpText(
      'after',
      `
One that is there already keeps its id and gets a new identity: its former certificates are revoked when it joins.
The token alone goes to standard output; whoever has it can join as this sled, once.

Examples:
  mooring sled invite sled-7 > invite
  mooring sled invite sled-7 | ssh sled-7 mooring sled-agent join --data /var/lib/mooring --address 10.0.0.7:8099`,
    )
    .action(async (name: string, options: ApiOptions & { valid: number }) => {
      const context = contextOf(options);
      const invite = await context.client.inviteSled({ name, valid_seconds: options.valid });
      context.print(invite, () => invite.token);
      if (!context.json)
        console.error(
          `good once, until ${invite.time_expires}, at ${invite.url}; on the server: mooring sled-agent join --data DIR --address host:port`,
        );
    });
  withApiOptions(sled.command('certificates <sled>'))
    .description('list the certificates of a sled')
    .addHelpText('after', '\nExamples:\n  mooring sled certificates sled-7 --json')
    .action(async (name: string, options: ApiOptions) => {
      const context = contextOf(options);
      const found = await context.client.listSledCertificates((await findSled(context.client, name)).id);
      context.print(found, () =>
        table(
          ['SERIAL', 'ISSUED', 'EXPIRES', 'REVOKED'],
          found.map((one) => [one.serial, one.time_issued, one.time_expires, one.time_revoked ?? '-']),
        ),
      );
    });
  withApiOptions(sled.command('revoke <sled>'))
    .description(
      'revoke every certificate of a sled: its word counts no more, and it is told nothing, until it joins again',
    )
    .addHelpText(
      'after',
      `
For a key that may have been stolen. What runs on the sled goes on; "mooring sled invite" lets it join again.

Examples:
  mooring sled revoke sled-7`,
    )
    .action(async (name: string, options: ApiOptions) => {
      const context = contextOf(options);
      const sledView = await findSled(context.client, name);
      const revoked = await context.client.revokeSledCertificates(sledView.id);
      context.print(
        { sled_id: sledView.id, revoked },
        () => `revoked ${revoked} certificate${revoked === 1 ? '' : 's'} of ${sledView.name}`,
      );
    });
}

/** Adds `mooring authority …`. */
export function addAuthorityCommands(program: Command): void {
  const authority = program.command('authority').description(SUMMARIES.authority);
  authority
    .command('create <dir>')
    .description('make a new authority in a folder: its certificate, and its private key for its owner alone')
    .option('--json', 'print JSON, for programs')
    .addHelpText(
      'after',
      `
Every API and worker process is given the same folder with --authority or MOORING_AUTHORITY.

Examples:
  mooring authority create /etc/mooring/authority`,
    )
    .action(async (folder: string, options: { json?: boolean }) => {
      const { Authority } = await import('../../platform/identity/authority.ts');
      await Authority.create(folder);
      await show(folder, options);
    });
  authority
    .command('show <dir>')
    .description('show the fingerprint of an authority’s certificate')
    .option('--json', 'print JSON, for programs')
    .addHelpText('after', '\nExamples:\n  mooring authority show /etc/mooring/authority')
    .action(show);
  for (const { name, description, after, act } of STEPS)
    authority
      .command(`${name} <dir>`)
      .description(description)
      .option('--json', 'print JSON, for programs')
      .addHelpText('after', `\n${after}\n\nExamples:\n  mooring authority ${name} /etc/mooring/authority`)
      .action(async (folder: string, options: { json?: boolean }) => {
        const { Authority } = await import('../../platform/identity/authority.ts');
        await act(Authority, folder);
        await show(folder, options);
        if (!options.json) console.error(after);
      });
}

type Authorities = typeof import('../../platform/identity/authority.ts').Authority;

const SPREAD =
  'Copy the folder to every machine of the control plane, and start its workers and APIs again, one after the other.';

/** How an authority is replaced while everything works: three steps, in this order. */
const STEPS = [
  {
    name: 'renew',
    description: 'begin to replace the authority: make the next one, for everybody to trust beside it',
    after: `${SPREAD} Sleds that are up learn of it within half a minute; then: mooring authority switch DIR`,
    act: (authority: Authorities, folder: string) => authority.renew(folder),
  },
  {
    name: 'switch',
    description: 'let the next authority take over: it signs, and the one before is trusted still, its key gone',
    after: `${SPREAD} Sleds that are up have a certificate of it within half a minute; then: mooring authority retire DIR`,
    act: (authority: Authorities, folder: string) => authority.switchOver(folder),
  },
  {
    name: 'retire',
    description: 'trust the former authority no more: every certificate that it has signed is refused',
    after: `${SPREAD} A sled that was away all the while joins again by an invitation.`,
    act: (authority: Authorities, folder: string) => authority.retire(folder),
  },
] as const;

async function show(folder: string, options: { json?: boolean }): Promise<void> {
  const { Authority } = await import('../../platform/identity/authority.ts');
  const { bundleFingerprints } = await import('../../platform/identity/certificates.ts');
  const { fingerprint, trustedPem } = await Authority.open(folder);
  const [, ...also] = await bundleFingerprints(trustedPem);
  if (options.json) printJson({ folder, fingerprint, also_trusted: also });
  else {
    console.log(`${folder}: SHA-256 ${fingerprint}`);
    for (const other of also) console.log(`also trusted: SHA-256 ${other}`);
  }
}
