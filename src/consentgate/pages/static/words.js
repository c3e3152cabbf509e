/** What the words of the ledger mean, for people who see them for the first time. */

/** @type {Record<string, string>} */
export const VERDICTS = { forward: "forwarded", withhold: "withheld", quarantine: "quarantined" };

/** @type {Record<string, string>} */
export const REASONS = {
  "opted-in": "The author said yes.",
  "not-opted-out": "The author did not say no, and the rule asks for no more.",
  "no-consent-record": "Nothing is known of the author.",
  "consent-unreadable": "The author's consent record cannot be trusted.",
  "jurisdiction-unknown": "It is not known where the author lives.",
  "jurisdiction-suspended": "Use is suspended where the author lives.",
  "jurisdiction-prohibited": "Use is prohibited where the author lives.",
  "no-rule": "No rule is in force where the author lives.",
  "opted-out": "The author said no.",
  withdrawn: "The author withdrew consent.",
  objected: "The author objected.",
  "not-opted-in": "The rule asks for a yes, and the author gave none.",
  minor: "The author is not an adult.",
  "age-unknown": "It is not known whether the author is an adult.",
  "not-public": "The rule does not cover who could see it.",
  "kind-not-covered": "The rule does not cover this kind of content.",
  "outside-dates": "The rule does not cover when it was created.",
  "redaction-failed": "What must not leave could not be taken out.",
  error: "The decision failed.",
  tombstone: "The record has no value.",
  "too-large": "The record is beyond the limits.",
  undecodable: "The record cannot be read.",
  "missing-field": "A required field is missing or wrong.",
  "subject-mismatch": "The record does not say whose it is, or says two things.",
  "bad-timestamp": "The record's time cannot be.",
};

/** @type {Record<string, string>} */
export const BASES = {
  "opt-in": "only with the author's yes",
  "opt-out": "unless the author said no",
  suspended: "nothing goes on for now",
  prohibited: "nothing may go on",
};

/** The phases of a partition; `ready` is the one in which it decides. @type {Record<string, string>} */
export const PHASES = {
  fencing: "taking over",
  bootstrapping: "bootstrapping",
  ready: "deciding",
  stalled: "stalled",
  recycling: "recovering",
  revoked: "given up",
};

/** @param {string} label A group, a country, `*` or `unknown`, as the ledger has it. */
export function place(label) {
  return label === "*" ? "everywhere else (*)" : label;
}
