-- Views for psql that decode the rows of imt_row. The rows are up to a minute old.
-- The layouts are those of oms/src/storage/codec. The column tab is the code of a table.
-- imt engine init replaces these functions and views.

-- Reads an unsigned LEB128 number at a position. Also returns the position after it.
CREATE OR REPLACE FUNCTION imt_number(bytes bytea, INOUT pos int, OUT num numeric)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    part int;
    factor numeric := 1;
BEGIN
    num := 0;
    LOOP
        part := get_byte(bytes, pos);
        pos := pos + 1;
        num := num + (part & 127) * factor;
        EXIT WHEN part < 128;
        factor := factor * 128;
    END LOOP;
END $$;

-- Reads an optional number: a byte that is 1 if the number is present, then the number.
CREATE OR REPLACE FUNCTION imt_optional(bytes bytea, INOUT pos int, OUT num numeric)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    pos := pos + 1;
    IF get_byte(bytes, pos - 1) = 1 THEN
        SELECT n.pos, n.num INTO pos, num FROM imt_number(bytes, pos) n;
    END IF;
END $$;

-- Reads a text: its length, then its bytes.
CREATE OR REPLACE FUNCTION imt_text(bytes bytea, INOUT pos int, OUT txt text)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    size numeric;
BEGIN
    SELECT n.pos, n.num INTO pos, size FROM imt_number(bytes, pos) n;
    txt := convert_from(substr(bytes, pos + 1, size::int), 'UTF8');
    pos := pos + size::int;
END $$;

-- Reads the lines of an order or a reservation.
CREATE OR REPLACE FUNCTION imt_lines(bytes bytea, INOUT pos int, OUT products jsonb)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    remaining numeric;
    product numeric;
    quantity numeric;
BEGIN
    products := '[]';
    SELECT n.pos, n.num INTO pos, remaining FROM imt_number(bytes, pos) n;
    WHILE remaining > 0 LOOP
        SELECT n.pos, n.num INTO pos, product FROM imt_number(bytes, pos) n;
        SELECT n.pos, n.num INTO pos, quantity FROM imt_number(bytes, pos) n;
        products := products || jsonb_build_object('id', product, 'quantity', quantity);
        remaining := remaining - 1;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION imt_layout(bytes bytea) RETURNS int
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    IF get_byte(bytes, 0) <> 1 THEN
        RAISE EXCEPTION 'a row has layout version %, which these views do not know', get_byte(bytes, 0);
    END IF;
    RETURN 1;
END $$;

CREATE OR REPLACE FUNCTION imt_order(bytes bytea, OUT state text, OUT store bigint,
    OUT transaction numeric, OUT created_at timestamptz, OUT updated_at timestamptz,
    OUT products jsonb, OUT history jsonb)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    pos int := imt_layout(bytes);
    remaining numeric;
    num numeric;
    txt text;
    at_ms numeric := 0;
    event jsonb;
BEGIN
    SELECT l.pos, l.products INTO pos, products FROM imt_lines(bytes, pos) l;
    SELECT n.pos, n.num INTO pos, remaining FROM imt_number(bytes, pos) n;
    state := 'received';
    history := '[]';
    WHILE remaining > 0 LOOP
        SELECT n.pos, n.num INTO pos, num FROM imt_number(bytes, pos) n;
        at_ms := at_ms + num;
        pos := pos + 1;
        CASE get_byte(bytes, pos - 1)
        WHEN 1 THEN
            SELECT n.pos, n.num INTO pos, num FROM imt_number(bytes, pos) n;
            store := num;
            state := 'reserved';
            event := jsonb_build_object('event', 'reserved', 'store', num);
        WHEN 2 THEN
            state := 'rejected';
            event := '{"event": "rejected"}';
        WHEN 3 THEN
            -- If the order was paid before its announcement, the state stays paid.
            IF state <> 'paid' THEN state := 'announced'; END IF;
            event := '{"event": "announced"}';
        WHEN 4 THEN
            SELECT n.pos, n.num INTO pos, num FROM imt_number(bytes, pos) n;
            transaction := num;
            state := 'paid';
            event := jsonb_build_object('event', 'paid', 'transaction', num);
        WHEN 5 THEN
            state := 'delivering';
            event := '{"event": "delivery_started"}';
        WHEN 6 THEN
            SELECT n.pos, n.num INTO pos, num FROM imt_optional(bytes, pos) n;
            state := 'delivered';
            event := jsonb_build_object('event', 'delivered', 'sequence', num);
        WHEN 7 THEN
            state := 'cancelled';
            event := '{"event": "cancelled"}';
        WHEN 8 THEN
            state := 'expired';
            event := '{"event": "expired"}';
        WHEN 9 THEN
            SELECT t.pos, t.txt INTO pos, txt FROM imt_text(bytes, pos) t;
            state := 'failed';
            event := jsonb_build_object('event', 'failed', 'reason', txt);
        WHEN 10 THEN
            SELECT n.pos, n.num INTO pos, num FROM imt_number(bytes, pos) n;
            -- A refund of a second payment changes neither the transaction nor the state of the
            -- order.
            IF transaction IS NULL OR transaction = num THEN
                transaction := num;
                state := 'refund_wanted';
            END IF;
            event := jsonb_build_object('event', 'refund_wanted', 'transaction', num);
        ELSE
            RAISE EXCEPTION 'an order has an event that these views do not know';
        END CASE;
        updated_at := to_timestamp(at_ms / 1000);
        created_at := coalesce(created_at, updated_at);
        history := history || (event || jsonb_build_object('at_ms', at_ms));
        remaining := remaining - 1;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION imt_reservation(bytes bytea, OUT products jsonb, OUT nonce numeric)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    pos int := imt_layout(bytes);
BEGIN
    SELECT n.pos INTO pos FROM imt_number(bytes, pos) n;
    SELECT l.pos, l.products INTO pos, products FROM imt_lines(bytes, pos) l;
    IF pos < length(bytes) THEN
        SELECT n.num INTO nonce FROM imt_number(bytes, pos) n;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION imt_message(bytes bytea, OUT state text, OUT attempts int,
    OUT next_try_at timestamptz, OUT last_error text)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    pos int := imt_layout(bytes);
    num numeric;
BEGIN
    state := CASE get_byte(bytes, pos) WHEN 0 THEN 'waiting' ELSE 'dead' END;
    SELECT n.pos, n.num INTO pos, num FROM imt_number(bytes, pos + 1) n;
    attempts := num;
    SELECT n.pos, n.num INTO pos, num FROM imt_number(bytes, pos) n;
    next_try_at := to_timestamp(num / 1000);
    SELECT nullif(t.txt, '') INTO last_error FROM imt_text(bytes, pos) t;
END $$;

CREATE OR REPLACE FUNCTION imt_delivery(bytes bytea, OUT store bigint, OUT sequence numeric,
    OUT products jsonb)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    pos int := imt_layout(bytes);
    num numeric;
BEGIN
    SELECT n.pos, n.num INTO pos, num FROM imt_number(bytes, pos) n;
    store := num;
    SELECT n.pos, n.num INTO pos, sequence FROM imt_optional(bytes, pos) n;
    SELECT l.pos, l.products INTO pos, products FROM imt_lines(bytes, pos) l;
END $$;

-- Reads the number of the last delivery that the quantities of a store count. The row of a store
-- with the flag 16 has its own number or none. Every other store has the number in the facts about
-- the volume's snapshots (head), which are NULL before the first snapshot.
CREATE OR REPLACE FUNCTION imt_counted_to(stored bytea, head bytea) RETURNS numeric
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    num numeric;
BEGIN
    IF stored IS NOT NULL AND get_byte(stored, imt_layout(stored)) & 16 > 0 THEN
        SELECT n.num INTO num FROM imt_optional(stored, imt_layout(stored) + 1) n;
    ELSIF head IS NOT NULL THEN
        SELECT c.num INTO num
            FROM imt_optional(head, imt_layout(head)) n, imt_optional(head, n.pos) c;
    END IF;
    RETURN num;
END $$;

-- Returns the width of a store's quantities in bytes, and the position of the first quantity.
CREATE OR REPLACE FUNCTION imt_width(bytes bytea, OUT width int, OUT pos int)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    flags int;
BEGIN
    pos := imt_layout(bytes) + 1;
    flags := get_byte(bytes, pos - 1);
    width := flags & 15;
    IF flags & 16 > 0 THEN
        SELECT n.pos INTO pos FROM imt_optional(bytes, pos) n;
    END IF;
END $$;

-- Reads a quantity of 1, 2 or 4 bytes. Only quantities of 4 bytes have a sign.
CREATE OR REPLACE FUNCTION imt_quantity(bytes bytea, pos int, width int) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE width
        WHEN 1 THEN get_byte(bytes, pos)
        WHEN 2 THEN get_byte(bytes, pos) | (get_byte(bytes, pos + 1) << 8)
        ELSE get_byte(bytes, pos) | (get_byte(bytes, pos + 1) << 8) | (get_byte(bytes, pos + 2) << 16)
            | (get_byte(bytes, pos + 3) << 24)
    END::bigint
$$;

-- Returns the products and quantities of one store.
CREATE OR REPLACE FUNCTION imt_column(stored bytea, catalogue bytea)
RETURNS TABLE (product bigint, quantity bigint)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    -- Concatenation with an empty value makes a decompressed copy of each value. Without the copy,
    -- each access to a byte in the loop would decompress the whole value.
    bytes bytea := stored || ''::bytea;
    products bytea := catalogue || ''::bytea;
    begun record;
BEGIN
    begun := imt_width(bytes);
    FOR place IN 0 .. least((length(bytes) - begun.pos) / begun.width, (length(products) - 1) / 4) - 1 LOOP
        product := imt_quantity(products, 1 + place * 4, 4) & 4294967295;
        quantity := imt_quantity(bytes, begun.pos + place * begun.width, begun.width);
        RETURN NEXT;
    END LOOP;
END $$;

-- Returns the position of a product in the catalogue, from 0. Returns NULL if the product is not in
-- the catalogue.
CREATE OR REPLACE FUNCTION imt_place(catalogue bytea, product bigint) RETURNS int
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    products bytea := substr(catalogue, 2);
    wanted bytea := set_byte(set_byte(set_byte(set_byte('\x00000000'::bytea, 0, (product & 255)::int),
        1, (product >> 8 & 255)::int), 2, (product >> 16 & 255)::int), 3, (product >> 24 & 255)::int);
    skipped int := 0;
    found int;
BEGIN
    LOOP
        found := position(wanted IN substr(products, skipped + 1));
        IF found = 0 THEN RETURN NULL; END IF;
        IF (skipped + found - 1) % 4 = 0 THEN RETURN (skipped + found - 1) / 4; END IF;
        skipped := skipped + found;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION imt_store(key bytea) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (get_byte(key, 0)::bigint << 24) + (get_byte(key, 1) << 16) + (get_byte(key, 2) << 8)
        + get_byte(key, 3)
$$;

CREATE OR REPLACE VIEW imt_orders AS
    SELECT r.volume, convert_from(r.key, 'UTF8') AS id, o.state, o.store, o.transaction, o.created_at,
        o.updated_at, o.products, o.history
    FROM imt_row r, LATERAL imt_order(r.value) o WHERE r.tab = 0;

CREATE OR REPLACE VIEW imt_reservations AS
    SELECT r.volume, regexp_replace(convert_from(r.key, 'UTF8'), '/[^/]*$', '') AS order_id,
        substring(convert_from(r.key, 'UTF8') FROM '[^/]*$')::bigint AS store, v.products, v.nonce
    FROM imt_row r, LATERAL imt_reservation(r.value) v WHERE r.tab = 2;

CREATE OR REPLACE VIEW imt_outbox AS
    SELECT r.volume, regexp_replace(convert_from(r.key, 'UTF8'), '/[^/]*$', '') AS order_id,
        substring(convert_from(r.key, 'UTF8') FROM '[^/]*$') AS kind, m.state, m.attempts,
        m.next_try_at, m.last_error
    FROM imt_row r, LATERAL imt_message(r.value) m WHERE r.tab = 3;

-- The deliveries that a snapshot did not count when it was applied, or that came after it. The
-- quantities of the store count a delivery only if both have a number, and the number of the
-- delivery is not the higher one. The row of a counted delivery remains for a short time.
CREATE OR REPLACE VIEW imt_deliveries AS
    SELECT r.volume, regexp_replace(convert_from(r.key, 'UTF8'), '/[^/]*$', '') AS order_id, d.store,
        d.products, d.sequence,
        coalesce(d.sequence <= imt_counted_to(q.value, h.value), false) AS is_counted
    FROM imt_row r
    CROSS JOIN LATERAL imt_delivery(r.value) d
    LEFT JOIN imt_row q ON q.volume = r.volume AND q.tab = 5 AND q.key = int4send(
        (CASE WHEN d.store > 2147483647 THEN d.store - 4294967296 ELSE d.store END)::int)
    LEFT JOIN imt_row h ON h.volume = r.volume AND h.tab = 8 AND h.key = 'stock'::bytea
    WHERE r.tab = 4;

-- The quantities of the newest snapshot. Later deliveries and reservations are not subtracted.
CREATE OR REPLACE VIEW imt_stock AS
    SELECT r.volume, imt_store(r.key) AS store, q.product, q.quantity
    FROM imt_row r
    JOIN imt_row c ON c.volume = r.volume AND c.tab = 5 AND c.key = 'catalogue'::bytea,
    LATERAL imt_column(r.value, c.value) q
    WHERE r.tab = 5 AND length(r.key) = 4;

-- The quantities of one product. The function does not decode the quantities of other products.
CREATE OR REPLACE FUNCTION imt_stock_of(product bigint)
RETURNS TABLE (volume text, store bigint, quantity bigint)
LANGUAGE sql STABLE STRICT AS $$
    SELECT r.volume, imt_store(r.key), imt_quantity(r.value, w.pos + c.place * w.width, w.width)
    FROM (SELECT k.volume, imt_place(k.value, product) AS place FROM imt_row k
        WHERE k.tab = 5 AND k.key = 'catalogue'::bytea) c
    JOIN imt_row r ON r.volume = c.volume AND r.tab = 5 AND length(r.key) = 4,
    LATERAL imt_width(r.value) w
    WHERE c.place IS NOT NULL AND w.pos + (c.place + 1) * w.width <= length(r.value)
$$;
