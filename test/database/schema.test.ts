/**
 * `db/migrations/` makes the tables and `db/schema.ts` describes them to the code: neither may have more than the other.
 * What `schema.ts` declares is made into tables in a schema of its own, beside the migrated one, so that PostgreSQL
 * describes both in the same words.
 */
import { randomUUID } from 'node:crypto';
import { is, SQL, sql } from 'drizzle-orm';
import { getTableConfig, IndexedColumn, isPgEnum, PgTable } from 'drizzle-orm/pg-core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openDatabase } from '../../db/connect.ts';
import { migrateDatabase } from '../../db/migrate.ts';
import * as schema from '../../db/schema.ts';
import { startTestDatabase, type TestDatabase } from '../support/database.ts';
import { MIGRATION_NAMES } from '../support/migrations.ts';

let database: TestDatabase;
beforeAll(async () => {
  database = await startTestDatabase();
});
afterAll(() => database?.stop());

const TABLES = Object.values(schema).filter((value) => is(value, PgTable));
const ENUMS = Object.values(schema).flatMap((value: unknown) => (isPgEnum(value) ? [value] : []));

const id = (name: string) => sql.identifier(name);
const names = (columns: readonly { readonly name: string }[]) =>
  sql.join(
    columns.map(({ name }) => id(name)),
    sql`, `,
  );

/** The statements that make a table as `schema.ts` declares it; `references` come after all tables are there. */
function statementsOf(table: PgTable): { create: SQL; references: SQL[]; indexes: SQL[] } {
  const config = getTableConfig(table);
  const parts: SQL[] = [
    ...config.columns.map(
      (column) => sql`${id(column.name)} ${sql.raw(column.getSQLType())}
        ${column.default === undefined ? sql`` : sql`DEFAULT ${column.default}`}
        ${sql.raw(column.generatedIdentity === undefined ? '' : `GENERATED ${column.generatedIdentity.type} AS IDENTITY`)}
        ${sql.raw(column.notNull ? 'NOT NULL' : '')} ${sql.raw(column.primary ? 'PRIMARY KEY' : '')}
        ${column.isUnique ? sql`CONSTRAINT ${id(column.uniqueName ?? '')} UNIQUE` : sql``}`,
    ),
    ...config.primaryKeys.map((key) => sql`CONSTRAINT ${id(key.getName())} PRIMARY KEY (${names(key.columns)})`),
    ...config.uniqueConstraints.map((key) => sql`CONSTRAINT ${id(key.getName() ?? '')} UNIQUE (${names(key.columns)})`),
    ...config.checks.map((check) => sql`CONSTRAINT ${id(check.name)} CHECK (${check.value})`),
  ];
  return {
    create: sql`CREATE TABLE ${id(config.name)} (${sql.join(parts, sql`, `)})`,
    references: config.foreignKeys.map((key) => {
      const { columns, foreignTable, foreignColumns } = key.reference();
      return sql`ALTER TABLE ${id(config.name)} ADD CONSTRAINT ${id(key.getName())} FOREIGN KEY (${names(columns)})
        REFERENCES ${id(getTableConfig(foreignTable).name)} (${names(foreignColumns)})
        ON DELETE ${sql.raw(key.onDelete ?? 'no action')} ON UPDATE ${sql.raw(key.onUpdate ?? 'no action')}`;
    }),
    indexes: config.indexes.map(({ config: index }) => {
      const columns = index.columns.map((column) => {
        if (is(column, SQL)) return sql`(${column})`;
        if (is(column, IndexedColumn) && column.name !== undefined) return id(column.name);
        throw new Error(`index ${index.name}: this test does not know what it is on`);
      });
      return sql`CREATE ${sql.raw(index.unique ? 'UNIQUE' : '')} INDEX ${id(index.name ?? '')} ON ${id(config.name)}
        USING ${sql.raw(index.method ?? 'btree')} (${sql.join(columns, sql`, `)})
        ${index.where === undefined ? sql`` : sql`WHERE ${index.where}`}`;
    }),
  };
}

/** What PostgreSQL has in a schema: a line for each column, constraint and index, by table. */
async function describe(name: string): Promise<Record<string, string[]>> {
  return database.db.transaction(async (transaction) => {
    // Names that are found on the path are written without their schema.
    await transaction.execute(sql`SELECT set_config('search_path', ${`${name}, public`}, true)`);
    const result = await transaction.execute<{ relation: string; line: string }>(sql`
      WITH relation AS (
        SELECT oid, relname FROM pg_class WHERE relnamespace = ${name}::regnamespace AND relkind NOT IN ('i', 'S')
      )
      SELECT relname AS relation, concat_ws(' ', 'column', attname, format_type(atttypid, atttypmod),
        CASE WHEN attnotnull THEN 'not null' END, 'default ' || pg_get_expr(adbin, adrelid), 'identity ' || nullif(attidentity::text, '')) AS line
      FROM relation JOIN pg_attribute ON attrelid = relation.oid AND attnum > 0 AND NOT attisdropped
      LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
      UNION ALL SELECT relname, concat_ws(' ', 'constraint', conname, pg_get_constraintdef(pg_constraint.oid, true))
      -- Whether a column takes NULL is said with the column.
      FROM relation JOIN pg_constraint ON conrelid = relation.oid AND contype <> 'n'
      UNION ALL SELECT relname, pg_get_indexdef(indexrelid, 0, true) FROM relation JOIN pg_index ON indrelid = relation.oid`);
    const lines: Record<string, string[]> = {};
    for (const { relation, line } of result.rows) lines[relation] = [...(lines[relation] ?? []), line].sort();
    return lines;
  });
}

test('the migrated tables are those of schema.ts: columns, defaults, keys, checks and indexes', async () => {
  const statements = TABLES.map(statementsOf);
  await database.db.transaction(async (transaction) => {
    await transaction.execute(sql`CREATE SCHEMA declared`);
    await transaction.execute(sql`SET LOCAL search_path = declared, public`);
    for (const { create } of statements) await transaction.execute(create.inlineParams());
    for (const { references, indexes } of statements)
      for (const statement of [...references, ...indexes]) await transaction.execute(statement.inlineParams());
  });
  const [migrated, declared] = [await describe('public'), await describe('declared')];
  expect(Object.keys(declared).length).toBe(TABLES.length);
  expect(migrated).toEqual(declared);
});

test('the enumerations have the values of the model, in their order', async () => {
  const result = await database.db.execute<{ name: string; values: string[] }>(sql`
    SELECT typname AS name, jsonb_agg(enumlabel ORDER BY enumsortorder) AS values
    FROM pg_enum JOIN pg_type ON pg_type.oid = enumtypid GROUP BY typname`);
  const migrated = Object.fromEntries(result.rows.map(({ name, values }) => [name, values]));
  expect(migrated).toEqual(Object.fromEntries(ENUMS.map((each) => [each.enumName, each.enumValues])));
});

test('processes that start at once on an empty database migrate it once', async () => {
  const name = `empty_${randomUUID().replaceAll('-', '')}`;
  await database.db.execute(sql`CREATE DATABASE ${id(name)} TEMPLATE template0`);
  const url = new URL(database.url);
  url.pathname = `/${name}`;
  await Promise.all([migrateDatabase(url.href), migrateDatabase(url.href), migrateDatabase(url.href)]);
  const { db, close } = openDatabase(url.href);
  try {
    const done = await db.execute(sql`SELECT hash FROM drizzle.__drizzle_migrations`);
    expect(done.rows).toHaveLength(MIGRATION_NAMES.length);
    expect((await db.execute(sql`SELECT last_beat_at FROM lease_service`)).rows).toHaveLength(1);
  } finally {
    await close();
  }
});
