/** The names of a workflow's subject, for those who start one and have read them already. */
import { defineSearchAttributeKey, type SearchAttributePair, SearchAttributeType } from '@temporalio/common';
import type { InstanceNames } from '../db/queries/read-names.ts';
import { SEARCH_ATTRIBUTES, type SearchAttribute } from '../model/search-attributes.ts';

/** What the database says of a workflow's instance, and of the sleds that the workflow is about. */
export interface SubjectNames extends InstanceNames {
  /** Migration only: the destination. */
  readonly sled?: string | undefined;
  /** Migration only: where the instance is. */
  readonly sourceSled?: string | undefined;
}

/**
 * The search attributes of a workflow that is about an instance, so that the client need not read them; none without `names`.
 * A client whose namespace doesn't have them leaves them out.
 */
export function namedSubject(instanceId: string, names: SubjectNames | undefined): SearchAttributePair[] {
  return names === undefined ? [] : searchAttributePairs({ instanceId, ...names });
}

/** Search attributes as the SDK takes them; those without a value are left out. */
export function searchAttributePairs(
  values: Partial<Record<SearchAttribute, string | undefined>>,
): SearchAttributePair[] {
  return Object.entries(values).flatMap(([attribute, value]) =>
    value === undefined
      ? []
      : [
          {
            key: defineSearchAttributeKey(SEARCH_ATTRIBUTES[attribute as SearchAttribute], SearchAttributeType.KEYWORD),
            value,
          },
        ],
  );
}
