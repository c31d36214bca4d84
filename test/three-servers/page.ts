/** docs/install.md as what is to be done: its steps, each on the servers that it names. */

/** A step of the page: what is done, on which servers (by their numbers), and under which heading. */
export type Step = { readonly heading: string; readonly line: number } & (
  | { readonly kind: 'run'; readonly on: readonly number[]; readonly script: string }
  | { readonly kind: 'copy'; readonly copies: readonly Copy[] }
  | { readonly kind: 'off' | 'back'; readonly server: number }
);

/** An `scp`: files of one server, to a path of another. */
export interface Copy {
  readonly from: { readonly server: number; readonly paths: readonly string[] };
  readonly to: { readonly server: number; readonly path: string };
}

const FENCE = /^```sh (.+)$/;
const SERVER = /^mooring-([123])$/;

/** Reads the page. Throws, with the line, where a step can't be understood. Blocks without a word on servers are for readers. */
export function readPage(text: string): Step[] {
  const steps: Step[] = [];
  let heading = '';
  const lines = text.split('\n');
  for (let index = 0; index < lines.length; index++) {
    const line = lines[index] ?? '';
    if (/^#+ /.test(line)) heading = line.replace(/^#+ /, '');
    const [, about] = FENCE.exec(line) ?? [];
    if (about === undefined) continue;
    const end = lines.indexOf('```', index + 1);
    if (end < 0) throw new Error(`line ${index + 1}: the step has no end`);
    steps.push(readStep(about, lines.slice(index + 1, end), { heading, line: index + 1 }));
    index = end;
  }
  return steps;
}

function readStep(about: string, lines: readonly string[], where: { heading: string; line: number }): Step {
  const [, servers] = /^on=([123](?:,[123])*)$/.exec(about) ?? [];
  if (servers !== undefined)
    return { ...where, kind: 'run', on: servers.split(',').map(Number), script: `${lines.join('\n')}\n` };
  if (about === 'copy') return { ...where, kind: 'copy', copies: lines.map((line) => readCopy(line, where.line)) };
  const [, server] = SERVER.exec(lines[0] ?? '') ?? [];
  if ((about === 'off' || about === 'back') && server !== undefined)
    return { ...where, kind: about, server: Number(server) };
  throw new Error(`line ${where.line}: "${about}" is no kind of step`);
}

function readCopy(line: string, at: number): Copy {
  const [program, ...words] = line.split(' ').filter((word) => word !== '-r');
  const places = words.map((word) => {
    const [, server, path] = /^mooring-([123]):(\/.+)$/.exec(word) ?? [];
    if (program !== 'scp' || server === undefined || path === undefined)
      throw new Error(`line ${at}: "${line}" is no scp from one server to another`);
    return { server: Number(server), path };
  });
  const to = places.at(-1);
  const from = places.slice(0, -1);
  const [first] = from;
  if (to === undefined || first === undefined || from.some(({ server }) => server !== first.server))
    throw new Error(`line ${at}: "${line}" is no scp from one server to another`);
  return { from: { server: first.server, paths: from.map(({ path }) => path) }, to };
}
