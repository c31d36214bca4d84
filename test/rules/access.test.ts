import { expect, test } from 'vitest';
import { ACCESS_ROLES, type AccessRole, includesRole, judgeAccess } from '../../model/access.ts';

const MINE = 'mine';
const THEIRS = 'theirs';

test('a role includes itself and those before it', () => {
  const included = ACCESS_ROLES.map((role) => ACCESS_ROLES.filter((needed) => includesRole(role, needed)));
  expect(included).toEqual([['viewer'], ['viewer', 'collaborator'], ['viewer', 'collaborator', 'admin']]);
});

/** By what is needed, what is held, and what it is about: v(iewer), c(ollaborator), a(dmin); `+` allowed, `-` forbidden, `?` hidden. */
const TABLE: readonly (readonly [
  needs: AccessRole,
  on: 'fleet' | 'project',
  about: string[],
  fleet: string,
  mine: string,
])[] = [
  // needs, on, about, v c a on the fleet, v c a on the project "mine"
  ['viewer', 'project', [MINE], '+++', '+++'],
  ['collaborator', 'project', [MINE], '-++', '-++'],
  ['admin', 'project', [MINE], '--+', '--+'],
  ['viewer', 'project', [THEIRS], '+++', '???'],
  ['collaborator', 'project', [THEIRS], '-++', '???'],
  ['admin', 'project', [THEIRS], '--+', '???'],
  ['viewer', 'project', [MINE, THEIRS], '+++', '???'],
  ['viewer', 'project', [], '+++', '+++'],
  ['viewer', 'fleet', [], '+++', '---'],
  ['collaborator', 'fleet', [], '-++', '---'],
  ['admin', 'fleet', [], '--+', '---'],
  ['collaborator', 'fleet', [MINE], '-++', '---'],
  ['collaborator', 'fleet', [THEIRS], '-++', '???'],
];

test.each(TABLE)('%s on the %s, about %j: on the fleet %s, on one project %s', (role, on, about, fleet, mine) => {
  const signs = { allowed: '+', forbidden: '-', hidden: '?' };
  const judged = (projectId: string | null) =>
    ACCESS_ROLES.map((held) => signs[judgeAccess({ role: held, projectId }, { role, on }, about)]).join('');
  expect([judged(null), judged(MINE)]).toEqual([fleet, mine]);
});
