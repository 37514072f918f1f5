//! Scaled dot-product attention, differentiated a head at a time.

use super::{Call, Gradients};
use crate::error::Result;
use crate::graph::{Body, Builder, Graph, Op, ValueId, ValueType};

/// Rows of queries that are handled at once: their scores, and three arrays like them, are all that is ever held of the
/// square matrix.
const TILE: usize = 512;

/// `com.microsoft.MultiHeadAttention`. With P = softmax(q kᵀ/√d) a head: dP = do vᵀ, dS = P (dP − Σ do o), dq = dS
/// k/√d, dk = dSᵀ q/√d, dv = Pᵀ do (Dao et al. 2022, "FlashAttention", appendix B.2). A `Scan` runs over the heads:
/// what its body makes is freed at each step.
pub(super) fn multi_head(c: &mut Call<'_>) -> Gradients {
    let heads = c.node.op.get_int("num_heads", 0);
    let (dy, y) = (c.dy()?, c.y());
    let [q, k, v] = [c.x(0)?, c.x(1)?, c.x(2)?];
    let width = c.shape(q).last().and_then(|d| d.known()).ok_or_else(|| c.unfit("its width has no number"))? as i64;
    let g = &mut *c.g;
    let scale = g.scalar(((width / heads) as f32).sqrt().recip());
    let scaled = g.mul(q, scale)?;
    let mut operands = Vec::new();
    for x in [scaled, k, v, dy] {
        operands.push(by_head(g, x, heads, width / heads)?);
    }
    let product = g.mul(dy, y)?;
    let product = by_head(g, product, heads, width / heads)?;
    operands.push(g.reduce_sum(product, &[-1], true)?);
    let types: Vec<ValueType> = operands.iter().map(|&id| g.ty(id).clone()).collect();
    let op = Op::new("Scan").with("body", crate::graph::Attribute::Graph(Body::new(one_head(&types)?)));
    let operands: Vec<Option<ValueId>> = operands.into_iter().map(Some).collect();
    let found = g.node_multi(op.int("num_scan_inputs", 5), &operands, 3)?;
    let dq = g.mul(found[0], scale)?;
    let joined = |g: &mut Builder, x: ValueId, perm: &[i64]| {
        let x = g.transpose(x, perm)?;
        g.reshape(x, &[0, 0, width])
    };
    let dq = joined(g, dq, &[1, 2, 0, 3])?;
    let [dk, dv] = [found[1], found[2]].map(|x| joined(g, x, &[1, 3, 0, 2]));
    Ok(vec![Some(dq), Some(dk?), Some(dv?)])
}

/// `[batch, L, heads · d]` → `[heads, batch, L, d]`.
fn by_head(g: &mut Builder, x: ValueId, heads: i64, width: i64) -> Result<ValueId> {
    let x = g.reshape(x, &[0, 0, heads, width])?;
    g.transpose(x, &[2, 0, 1, 3])
}

/// One head: `q` (scaled), `k`, `v`, `do` `[batch, L, d]` and Σ do o `[batch, S, 1]` → dq `[batch, S, d]`, dkᵀ and dvᵀ
/// `[batch, d, L]`. The transposed forms never transpose a square matrix.
fn one_head(types: &[ValueType]) -> Result<Graph> {
    let mut g = Builder::new("head");
    let mut input = |name: &str, ty: &ValueType| g.input(name, ty.dtype, &ty.shape[1..]);
    let [q, k, v] = [("q", &types[0]), ("k", &types[1]), ("v", &types[2])].map(|(name, ty)| input(name, ty));
    let (d_out, along) = (input("do", &types[3]), input("along", &types[4]));
    let (k_t, v_t) = (g.transpose(k, &[0, 2, 1])?, g.transpose(v, &[0, 2, 1])?);
    let rows = types[0].shape[2].known();
    let (mut dq, mut sums) = (Vec::new(), None);
    for tile in tiles(rows) {
        let part = |g: &mut Builder, x: ValueId| match &tile {
            Some(rows) => g.slice(x, 1, rows.start as i64, rows.end as i64),
            None => Ok(x),
        };
        let (q, d_out, along) = (part(&mut g, q)?, part(&mut g, d_out)?, part(&mut g, along)?);
        let scores = g.matmul(q, k_t)?;
        let p = g.softmax(scores)?;
        let dp = g.matmul(d_out, v_t)?;
        let centred = g.sub(dp, along)?;
        let ds = g.mul(p, centred)?;
        dq.push(g.matmul(ds, k)?);
        let (q_t, d_out_t) = (g.transpose(q, &[0, 2, 1])?, g.transpose(d_out, &[0, 2, 1])?);
        let (dk, dv) = (g.matmul(q_t, ds)?, g.matmul(d_out_t, p)?);
        sums = Some(match sums {
            None => (dk, dv),
            Some((sum_k, sum_v)) => (g.add(sum_k, dk)?, g.add(sum_v, dv)?),
        });
    }
    let dq = if let [one] = dq[..] { one } else { g.concat(&dq, 1)? };
    g.output("dq", dq)?;
    if let Some((dk, dv)) = sums {
        g.output("dk", dk)?;
        g.output("dv", dv)?;
    }
    g.finish()
}

/// The rows in tiles; all at once where there are few or their number is not known.
fn tiles(rows: Option<usize>) -> Vec<Option<std::ops::Range<usize>>> {
    match rows {
        Some(n) if n > TILE + TILE / 4 => {
            let tile = |start: usize| Some(start..(start + TILE).min(n));
            // A last row or two goes along with the tile before.
            let mut all: Vec<_> = (0..n).step_by(TILE).map(tile).collect();
            if n % TILE != 0 && n % TILE <= TILE / 4 {
                all.pop();
                if let Some(Some(last)) = all.last_mut() {
                    last.end = n;
                }
            }
            all
        }
        _ => vec![None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_all_rows_once() {
        for n in [1, TILE, TILE + 1, 2 * TILE - 1, 2 * TILE, 2 * TILE + 1, 4097, 5000] {
            let mut next = 0;
            for tile in tiles(Some(n)) {
                let tile = tile.unwrap_or(0..n);
                assert_eq!(tile.start, next, "{n}");
                next = tile.end;
            }
            assert_eq!(next, n);
        }
        assert_eq!(tiles(None), [None]);
    }
}
