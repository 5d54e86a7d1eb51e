//! What every set of kernels checks before it indexes.

use std::ops::Range;

use super::{AttentionShape, Batch, KV_BLOCK, KernelError, KvShape, Result, Rope, Segment, Sight};

/// Refuses a size that is not the expected one.
pub fn fits(op: &'static str, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got { Ok(()) } else { Err(KernelError::Shape { op, what, expected, got }) }
}

/// Refuses a width that is not whole groups of `group` columns.
pub fn groups(op: &'static str, width: usize, group: usize) -> Result<()> {
    fits(op, "width modulo the group's", 0, width.checked_rem(group).unwrap_or(1))
}

/// `[out, in]` of a linear weight or table.
pub fn matrix(op: &'static str, shape: &[usize]) -> Result<(usize, usize)> {
    match *shape {
        [out, inputs] => Ok((out, inputs)),
        _ => {
            let what = "rank of the weight";
            Err(KernelError::Shape { op, what, expected: 2, got: shape.len() })
        }
    }
}

/// Refuses columns that do not lie in a row of `width`.
pub fn columns(op: &'static str, width: usize, columns: &Range<usize>) -> Result<()> {
    if columns.start <= columns.end && columns.end <= width {
        return Ok(());
    }
    let what = "end of a column range (at most)";
    Err(KernelError::Shape { op, what, expected: width, got: columns.end })
}

/// The rows of an addition to some of `height` rows of `width`, for `y` of `(rows, width)`: where each
/// row of the sum finds its summand.
pub fn added_rows(
    (height, width): (usize, usize),
    rows: &[usize],
    y: (usize, usize),
) -> Result<Vec<Option<usize>>> {
    let op = "add_to_rows";
    fits(op, "rows of the summand", rows.len(), y.0)?;
    fits(op, "width of the summand", width, y.1)?;
    let mut places = vec![None; height];
    for (index, &row) in rows.iter().enumerate() {
        let what = "row (below, and once)";
        let refused = KernelError::Shape { op, what, expected: height, got: row };
        let place = places.get_mut(row).filter(|place| place.is_none()).ok_or(refused)?;
        *place = Some(index);
    }
    Ok(places)
}

/// Everything that a rotation of `rows` rows of `width` indexes by.
pub fn rope(rows: usize, width: usize, positions: &[u32], rope: &Rope) -> Result<()> {
    fits("rope", "number of positions", rows, positions.len())?;
    groups("rope", width, rope.head_dim)?;
    let (op, what) = ("rope", "number of rotated values of a head (at most)");
    match 2 * rope.inv_freq.len() {
        0 => Err(KernelError::Shape { op, what: "number of frequencies", expected: 1, got: 0 }),
        got if got > rope.head_dim => {
            Err(KernelError::Shape { op, what, expected: rope.head_dim, got })
        }
        _ => Ok(()),
    }
}

/// Everything that attention indexes by. `sizes`: rows and widths of q, k and v.
pub fn attention(
    sizes: [(usize, usize); 3],
    layer: usize,
    shape: AttentionShape,
    batch: &Batch,
    pool: KvShape,
) -> Result<()> {
    let [q, k, v] = sizes;
    stored([k, v], layer, &batch.segments, pool)?;
    attended(q, layer, shape, (&batch.segments, Sight::Causal), pool)
}

/// Everything that the biases of `heads` heads by distance index by, for `rows` rows of scores; `table`:
/// its rows and width.
pub fn biases(rows: usize, heads: usize, table: (usize, usize), buckets: &[u16]) -> Result<()> {
    let op = "attend";
    let most = buckets.iter().max().map_or(0, |&bucket| usize::from(bucket) + 1);
    fits(op, "rest of the number of distances over 2", 1, buckets.len() % 2)?;
    fits(op, "width of the table of biases modulo heads", 0, table.1 % heads)?;
    if table.1 < most * heads {
        let what = "width of the table of biases (at least)";
        return Err(KernelError::Shape { op, what, expected: most * heads, got: table.1 });
    }
    if table.0 != 1 {
        fits(op, "rows of the table of biases", rows, table.0)?;
    }
    Ok(())
}

/// Everything that storing keys and values indexes by. `sizes`: rows and widths of k and v.
pub fn stored(
    sizes: [(usize, usize); 2],
    layer: usize,
    segments: &[Segment],
    pool: KvShape,
) -> Result<()> {
    let fits = |what, expected, got| fits("attention", what, expected, got);
    let [k, v] = sizes;
    fits("width of k", pool.kv_heads * pool.head_dim, k.1)?;
    fits("width of v", k.1, v.1)?;
    fits("rows of v", k.0, v.0)?;
    in_cache(k.0, layer, (segments, Sight::Causal), pool)
}

/// Everything that attention to what is stored indexes by. `q`: its rows and width.
pub fn attended(
    q: (usize, usize),
    layer: usize,
    shape: AttentionShape,
    seen: (&[Segment], Sight),
    pool: KvShape,
) -> Result<()> {
    let fits = |what, expected, got| fits("attention", what, expected, got);
    fits("key/value heads", pool.kv_heads, shape.kv_heads)?;
    fits("width of a head", pool.head_dim, shape.head_dim)?;
    fits("query heads that no key head serves", 0, shape.heads % shape.kv_heads.max(1))?;
    fits("rest of the head's width over 2", 0, shape.head_dim % 2)?;
    fits("width of q", shape.heads * shape.head_dim, q.1)?;
    in_cache(q.0, layer, seen, pool)
}

/// Refuses a layer, rows or blocks that are not there.
fn in_cache(
    rows: usize,
    layer: usize,
    (segments, sight): (&[Segment], Sight),
    pool: KvShape,
) -> Result<()> {
    let op = "attention";
    if layer >= pool.layers {
        let what = "layer (below)";
        return Err(KernelError::Shape { op, what, expected: pool.layers, got: layer });
    }
    let mut next = 0;
    for segment in segments {
        fits(op, "first row of a segment", next, segment.rows.start)?;
        next = segment.rows.end.max(next);
        let own = if sight == Sight::Cached { 0 } else { segment.rows.len() };
        let needed = (segment.cached + own).div_ceil(KV_BLOCK);
        if segment.blocks.len() < needed {
            let what = "number of cache blocks (at least)";
            let got = segment.blocks.len();
            return Err(KernelError::Shape { op, what, expected: needed, got });
        }
        for &block in &segment.blocks {
            if block as usize >= pool.blocks {
                let (what, got) = ("cache block (below)", block as usize);
                return Err(KernelError::Shape { op, what, expected: pool.blocks, got });
            }
        }
    }
    fits(op, "rows of the segments", rows, next)
}
