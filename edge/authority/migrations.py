"""What an authority keeps in PostgreSQL: tables, and the steps that change them as functions.

Each function is one statement for whoever calls it, so one transaction and one round trip; inside,
every statement sees what others have committed by then (READ COMMITTED). Locks are taken in this order:
the row of the authority, or a token; then a member. Joining for the first time locks a token alone.

A number of a change is given while the row of its authority is locked, and the lock is held until the
commit: whoever sees a number has seen all below it.
"""

SCHEMA = "ockam_edge"

_TABLES = """
CREATE TABLE ockam_edge.authority (id bytea PRIMARY KEY, change bigint NOT NULL);
CREATE TABLE ockam_edge.member (
    authority bytea, identifier bytea, attributes bytea NOT NULL, added_by bytea NOT NULL,
    added_at bigint NOT NULL, pre_trusted boolean NOT NULL,
    PRIMARY KEY (authority, identifier)
);
CREATE TABLE ockam_edge.token (
    authority bytea, code_hash bytea, reference text NOT NULL, issued_by bytea NOT NULL,
    created_at bigint NOT NULL, expires_at bigint NOT NULL, uses bigint NOT NULL,
    attributes bytea NOT NULL,
    PRIMARY KEY (authority, code_hash)
);
CREATE INDEX token_expiry ON ockam_edge.token (authority, expires_at);
CREATE TABLE ockam_edge.member_change (
    authority bytea, identifier bytea, number bigint NOT NULL, removed boolean NOT NULL,
    at bigint NOT NULL,
    PRIMARY KEY (authority, identifier), UNIQUE (authority, number)
);
"""

_NOTE = """
-- A change for those who ask what changed. Only the latest of each member is kept.
CREATE FUNCTION ockam_edge.note(a bytea, who bytea, gone boolean, now bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE next bigint;
BEGIN
    UPDATE ockam_edge.authority SET change = change + 1 WHERE id = a RETURNING change INTO next;
    INSERT INTO ockam_edge.member_change VALUES (a, who, next, gone, now)
        ON CONFLICT (authority, identifier)
        DO UPDATE SET number = excluded.number, removed = excluded.removed, at = excluded.at;
END $$;
"""

_PUT = """
CREATE FUNCTION ockam_edge.put(
    a bytea, who bytea, said bytea, who_added bytea, now bigint, trusted boolean
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE before bytea;
BEGIN
    LOOP
        -- One that was removed and comes back must not stay removed with those who heard of it.
        IF EXISTS (SELECT FROM ockam_edge.member_change WHERE authority = a AND identifier = who)
        OR EXISTS (SELECT FROM ockam_edge.member WHERE authority = a AND identifier = who) THEN
            PERFORM FROM ockam_edge.authority WHERE id = a FOR NO KEY UPDATE;
        END IF;
        INSERT INTO ockam_edge.member VALUES (a, who, said, who_added, now, trusted)
            ON CONFLICT DO NOTHING;
        IF FOUND THEN
            IF EXISTS (SELECT FROM ockam_edge.member_change WHERE authority = a AND identifier = who)
            THEN
                PERFORM ockam_edge.note(a, who, false, now);
            END IF;
            RETURN;
        END IF;
        SELECT attributes INTO before FROM ockam_edge.member
            WHERE authority = a AND identifier = who FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        UPDATE ockam_edge.member
            SET attributes = said, added_by = who_added, added_at = now, pre_trusted = trusted
            WHERE authority = a AND identifier = who;
        IF before <> said THEN
            PERFORM ockam_edge.note(a, who, false, now);
        END IF;
        RETURN;
    END LOOP;
END $$;
"""

_REMOVE = """
CREATE FUNCTION ockam_edge.remove(a bytea, who bytea, now bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM ockam_edge.authority WHERE id = a FOR NO KEY UPDATE;
    DELETE FROM ockam_edge.member WHERE authority = a AND identifier = who;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM ockam_edge.note(a, who, true, now);
    RETURN true;
END $$;
"""

_PRE_TRUST = """
CREATE FUNCTION ockam_edge.pre_trust(
    a bytea, whom bytea[], said bytea[], who_added bytea[], since bigint[], now bigint
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE gone bytea;
BEGIN
    PERFORM FROM ockam_edge.authority WHERE id = a FOR NO KEY UPDATE;
    FOR gone IN SELECT identifier FROM ockam_edge.member
        WHERE authority = a AND pre_trusted AND identifier <> ALL (whom) ORDER BY identifier
    LOOP
        PERFORM ockam_edge.remove(a, gone, now);
    END LOOP;
    FOR n IN 1 .. cardinality(whom) LOOP
        PERFORM ockam_edge.put(a, whom[n], said[n], who_added[n], since[n], true);
    END LOOP;
END $$;
"""

_REDEEM = """
-- The token is locked first: of any number who ask at once, each sees what the one before it left.
CREATE FUNCTION ockam_edge.redeem(
    a bytea, code bytea, who bytea, now bigint, OUT outcome text, OUT reference text
) LANGUAGE plpgsql AS $$
DECLARE found_token ockam_edge.token;
BEGIN
    reference := '';
    IF EXISTS (SELECT FROM ockam_edge.member_change WHERE authority = a AND identifier = who) THEN
        PERFORM FROM ockam_edge.authority WHERE id = a FOR NO KEY UPDATE;  -- it will be noted
    END IF;
    SELECT * INTO found_token FROM ockam_edge.token
        WHERE authority = a AND code_hash = code FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM ockam_edge.member WHERE authority = a AND identifier = who) THEN
        outcome := 'ALREADY_MEMBER';
        RETURN;
    END IF;
    IF found_token.code_hash IS NULL THEN
        outcome := 'UNKNOWN';
        RETURN;
    END IF;
    IF found_token.uses < 1 OR found_token.expires_at <= now THEN
        reference := found_token.reference;
        outcome := CASE WHEN found_token.uses < 1 THEN 'USED_UP' ELSE 'EXPIRED' END;
        RETURN;
    END IF;
    INSERT INTO ockam_edge.member
        VALUES (a, who, found_token.attributes, found_token.issued_by, now, false)
        ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN  -- it came in by another way meanwhile, and spends nothing
        outcome := 'ALREADY_MEMBER';
        RETURN;
    END IF;
    UPDATE ockam_edge.token SET uses = uses - 1 WHERE authority = a AND code_hash = code;
    IF EXISTS (SELECT FROM ockam_edge.member_change WHERE authority = a AND identifier = who) THEN
        PERFORM ockam_edge.note(a, who, false, now);
    END IF;
    reference := found_token.reference;
    outcome := 'JOINED';
END $$;
"""

MIGRATIONS = (_TABLES + _NOTE + _PUT + _REMOVE + _PRE_TRUST + _REDEEM,)
"""In order; the table `migration` says how many were done. Never change one that was released, nor
what a function is called with: older processes go on for a while beside newer ones."""
