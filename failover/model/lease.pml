/* lease.pml: leases without data, on two or three nodes whose clocks run at different rates; the primary's look at the record; forced claims.
 *
 * pair.pml has the data, and clocks that only tick at different moments. Here are the parts of [5], [7], [8] and [9] that are about time:
 * how long a promise has to be, how long a forced claim has to wait for a primary that needs no lease, and who must look at the record
 * when. Links break, agents crash or stand still, and answers of the witness get lost any number of times: there are no budgets, because
 * nothing here counts up but the epoch, which MAXEP bounds. FORCE, CRASH and LATE set to 0 take one kind away.
 *
 * What is checked: S2, never two nodes that may serve in the same instant.
 * -DW_x takes a rule away or reads it wrongly, -DX_x is an exception that the guarantees name; each has to be refuted.
 */
#ifndef NODES
#define NODES 2
#endif
#ifndef MAXEP
#define MAXEP 3
#endif
#ifndef L
#define L 1
#endif
/* The margin of a promise and of a wait is two ticks: one because clocks tick at different moments, one because they run at different rates.
 * With -DONECLOCK all tick together and it is none. */
#ifdef ONECLOCK
#define MARGIN 0
#elif defined(W_MARGIN)  /* the margin does not cover the rate */
#define MARGIN 1
#else
#define MARGIN 2
#endif
#define G (L+MARGIN)
#ifdef W_HOLDSHORT   /* a forced claim waits no longer than a promise */
#define HOLD G
#else
#define HOLD (2*L+MARGIN) /* [9] */
#endif
#define LOOKS (2*L)  /* a look lets its primary serve for so long, counted from its start */
#define RATE (HOLD+1)
#ifndef FORCE
#define FORCE 1      /* operators force whoever is not in the set */
#endif
#ifndef LATE
#define LATE 1       /* answers of the witness get lost; the CAS lands later or never */
#endif
#ifndef CRASH
#define CRASH 1
#endif
#define B(n) (1<<(n))
#define NOBODY 3

typedef Node {
  unsigned seen : 3; unsigned began : 3;              /* durable [4, 8] */
  bit up; bit pri; unsigned ep : 3; unsigned cnt : 3; /* the peers that count */
  bit refuse; bit won; bit claim;                     /* candidate; its claim is decided but it has not begun; it overrules the record */
  unsigned wait : 3; bit saw;                         /* ticks until it may begin; it has seen a claim of an earlier life in the record */
  unsigned sess : 2;                                  /* the primary that it follows */
  unsigned promise : 3;
  unsigned look : 3; bit news;                        /* a look: ticks since its start, plus one; it will show a higher epoch */
  unsigned gate : 3;                                  /* ticks for which the last look that ended still lets it serve */
  bit fresh; unsigned ke : 3; unsigned ks : 3;        /* the record as last read */
  unsigned ck : 2; unsigned cs : 3; unsigned cp : 2;  /* the CAS under way: kind, state, about whom */
  unsigned zk : 2; bit zown; unsigned zp : 2;         /* a send that was given up, as in pair.pml */
  /* by peer: ticks left of the lease; ticks in which a grant for the last request counts; a grant on its way */
  unsigned lease0 : 2; unsigned lease1 : 2; unsigned lease2 : 2;
  unsigned asked0 : 2; unsigned asked1 : 2; unsigned asked2 : 2;
  bit grant0; bit grant1; bit grant2;
};
Node N[NODES];
unsigned R_ep : 3 = 1; unsigned R_pri : 2; unsigned R_set : 3 = (1<<NODES)-1;
unsigned turn : 2 = NOBODY;   /* whose clock ticks next; NOBODY: no timer runs */
unsigned slip : 4;            /* rounds until a clock may tick once more than the others */

#define SHRINK 1
#define GROW 2
#define PROMOTE 3
#define SENT 1                /* the states of a CAS, as in pair.pml */
#define LANDED 2
#define PASSED 3
#define UNSURE 4
#define INDEED 5
#define NEVER 6

#if NODES==2
#define EACH(macro) macro(0) macro(1)
#define PEERS(macro,n) macro(n,0) macro(n,1)
#define ALL(macro,op) (macro(0) op macro(1))
#define AMONG(macro,n,op) (macro(n,0) op macro(n,1))
#else
#define EACH(macro) macro(0) macro(1) macro(2)
#define PEERS(macro,n) macro(n,0) macro(n,1) macro(n,2)
#define ALL(macro,op) (macro(0) op macro(1) op macro(2))
#define AMONG(macro,n,op) (macro(n,0) op macro(n,1) op macro(n,2))
#endif

/* ---- who may serve ---- */
#ifdef W_ONELEASE    /* a lease from one of the counted peers is enough */
#define LEASED(n) (N[n].cnt==0 || N[n].lease0+N[n].lease1+N[n].lease2>0)
#else
#define HAS(n,p) (!(N[n].cnt&B(p)) || N[n].lease##p>0)
#define LEASED(n) AMONG(HAS,n,&&)
#endif
#if defined(W_NOLOOK)          /* a primary that is alone serves whether it has looked or not */
#define LOOKED(n) (1)
#elif defined(W_LEASEISLOOK)   /* a primary with leases need not have looked */
#define LOOKED(n) (N[n].gate>0 || N[n].cnt!=0)
#else
#define LOOKED(n) (N[n].gate>0)
#endif
#define SERVE(n) (N[n].up && N[n].pri && LEASED(n) && LOOKED(n))
#define IDLECAS(n) (N[n].up && N[n].cs==0 && N[n].ks!=0)

inline nocas(n) { N[n].ck=0; N[n].cs=0; N[n].cp=0; N[n].zown=0 }
inline hangup(n) { N[n].sess=NOBODY }
#define LEFT(n,s) if :: N[s].sess==n -> hangup(s) :: else fi;
inline noleases(n) { N[n].lease0=0; N[n].lease1=0; N[n].lease2=0; N[n].asked0=0; N[n].asked1=0; N[n].asked2=0; N[n].grant0=0; N[n].grant1=0; N[n].grant2=0 }
inline demote(n) { N[n].pri=0; N[n].ep=0; N[n].cnt=0; N[n].gate=0; N[n].look=0; N[n].news=0; noleases(n); PEERS(LEFT,n) }
inline see(n,EPOCH) { if :: N[n].seen<EPOCH -> N[n].seen=EPOCH :: else fi }
/* A CAS is a look as well: it lands only on the record that the node has read. */
inline put(n,KIND,PEER) { N[n].ck=KIND; N[n].cp=PEER; N[n].news=0; if :: N[n].fresh -> N[n].cs=SENT; N[n].look=1 :: else -> N[n].cs=NEVER; N[n].look=0 fi }
#ifdef W_LOOKEND     /* a look counts from its end */
#define LASTS(n) (LOOKS)
#else
#define LASTS(n) (LOOKS+1-N[n].look)
#endif
inline looked(n) { if :: N[n].look>0 && N[n].gate<LASTS(n) -> N[n].gate=LASTS(n) :: else fi; N[n].look=0; N[n].news=0 }

/* ---- the record ---- */
inline yes(n,EPOCH) {
  if
  :: N[n].ck==SHRINK && N[n].pri -> N[n].cnt=N[n].cnt&~B(N[n].cp)
  :: N[n].ck==GROW && N[n].pri -> N[n].cnt=N[n].cnt|B(N[n].cp)
  :: N[n].ck==PROMOTE -> N[n].won=1; N[n].ep=EPOCH; if :: N[n].claim -> N[n].wait=HOLD :: else fi; N[n].claim=0; N[n].saw=0
  :: else
  fi }
inline no(n) { if :: N[n].ck==PROMOTE -> N[n].refuse=0; N[n].claim=0 :: else fi }
#define LAPSE(n) N[n].fresh=0; N[n].zk=0; N[n].zp=0; \
  if :: N[n].cs==SENT || N[n].cs==UNSURE || N[n].cs==INDEED -> N[n].cs=NEVER :: N[n].cs==LANDED -> N[n].cs=PASSED :: else fi;
inline written(n,KIND,PEER) {
  if :: KIND==PROMOTE -> R_ep++; R_set=B(n) :: KIND==SHRINK -> R_set=R_set&~B(PEER) :: else -> R_set=R_set|B(PEER) fi;
  R_pri=n }
#define g_land(n) (N[n].cs==SENT)
inline a_land(n) { written(n,N[n].ck,N[n].cp); EACH(LAPSE) N[n].cs=LANDED }
#define g_zland(n) (N[n].zk!=0)
inline a_zland(n) { written(n,N[n].zk,N[n].zp);
  if :: N[n].zown && (N[n].cs==SENT || N[n].cs==UNSURE) -> EACH(LAPSE) N[n].cs=INDEED; N[n].look=0 :: else -> EACH(LAPSE) fi;
  N[n].zown=0 }
#define g_ok(n) (N[n].up && (N[n].cs==LANDED || N[n].cs==PASSED))
inline a_ok(n) {
  if :: N[n].ck==PROMOTE -> N[n].ke=N[n].ke+1; N[n].ks=B(n); see(n,N[n].ke)
     :: N[n].ck==SHRINK -> N[n].ks=N[n].ks&~B(N[n].cp)
     :: else -> N[n].ks=N[n].ks|B(N[n].cp) fi;
  N[n].fresh=(N[n].cs==LANDED); yes(n,N[n].ke); looked(n); nocas(n) }
#define g_late(n) (N[n].up && (N[n].cs==LANDED || N[n].cs==PASSED || (N[n].cs==SENT && (N[n].zk==0 || N[n].zown))))
inline a_late(n) {
#ifdef X_FAILEDLOOK  /* a look that failed counts as one: a primary goes on without a witness */
  looked(n);
#else
  N[n].look=0;
#endif
  if :: N[n].cs==SENT -> N[n].zk=N[n].ck; N[n].zp=N[n].cp; N[n].zown=1; N[n].cs=UNSURE
     :: N[n].cs==LANDED -> N[n].cs=INDEED
     :: else -> N[n].cs=NEVER fi }
#define g_read(n) (N[n].up && (N[n].cs>=UNSURE || (N[n].cs==0 && !N[n].fresh)))
inline a_read(n) {
  N[n].fresh=1; N[n].ke=R_ep; N[n].ks=R_set;
  if
  :: N[n].cs==UNSURE -> N[n].cs=SENT; N[n].look=1; N[n].news=0
  :: else ->
     if :: N[n].cs==INDEED -> yes(n,R_ep) :: N[n].cs==NEVER -> no(n) :: else fi;
     nocas(n);
     if :: R_pri==n && !N[n].pri && !N[n].won && N[n].began!=R_ep && !N[n].saw -> N[n].saw=1;
#ifndef W_CLAIMFORGOT /* a claim's wait ends with the agent that made it */
           N[n].wait=HOLD
#endif
        :: else fi;
     if :: N[n].pri && R_ep>N[n].ep -> demote(n)
        :: N[n].won && R_ep>N[n].ep -> N[n].won=0; N[n].ep=0; N[n].refuse=0; N[n].wait=0
        :: !N[n].pri && R_ep>N[n].seen -> hangup(n)
        :: else fi;
     if :: R_pri!=n -> N[n].saw=0; if :: !N[n].won -> N[n].wait=0 :: else fi :: else fi;
     see(n,R_ep)
  fi }
/* A look starts and, some time later, ends. What it shows is the record of its start, the worst that it may show. */
#define g_look(n) (N[n].up && N[n].pri && N[n].look==0 && (N[n].cs==0 || N[n].cs>=UNSURE))
inline a_look(n) { N[n].look=1; N[n].news=(R_ep>N[n].ep) }
#define g_shown(n) (N[n].up && N[n].pri && N[n].look>0 && (N[n].cs==0 || N[n].cs>=UNSURE))
inline a_shown(n) { if :: N[n].news -> demote(n); N[n].fresh=0 :: else -> looked(n) fi }
#define g_unshown(n) (g_shown(n))
inline a_unshown(n) { looked(n) }

/* ---- clocks ----
 * They tick in turn, and once in RATE rounds any one of them ticks once more: in a stretch of a promise or a wait, one clock counts up
 * to two ticks more than another, one for the moment at which the stretch begins, one for the rate. (With three nodes the other cyclic
 * order is this one with nodes 1 and 2 renamed.) */
#define RUNS(n) (N[n].wait+N[n].promise+N[n].look+N[n].gate+N[n].lease0+N[n].lease1+N[n].lease2+N[n].asked0+N[n].asked1+N[n].asked2>0)
#define DOWN(x) if :: x>0 -> x-- :: else fi
inline pass(n) {
  DOWN(N[n].wait); DOWN(N[n].promise); DOWN(N[n].gate);
  DOWN(N[n].lease0); DOWN(N[n].lease1); DOWN(N[n].lease2); DOWN(N[n].asked0); DOWN(N[n].asked1); DOWN(N[n].asked2);
  if :: N[n].look>LOOKS-1 -> N[n].look=0; N[n].news=0 :: N[n].look>0 && N[n].look<=LOOKS-1 -> N[n].look++ :: else fi }
inline still() { if :: !ALL(RUNS,||) -> turn=NOBODY; slip=0 :: else fi }
#ifdef ONECLOCK
#define TOO(n) pass(n);
#define g_tick(n) (n==0 && ALL(RUNS,||))
inline a_tick(n) { EACH(TOO) }
#define g_slip(n) (0)
inline a_slip(n) { skip }
#else
#define g_tick(n) (ALL(RUNS,||) && (turn==n || turn==NOBODY))
inline a_tick(n) { pass(n); turn=(n+1)%NODES; if :: n==0 -> DOWN(slip) :: else fi; still() }
#define g_slip(n) (RUNS(n) && slip==0 && turn!=NOBODY)
inline a_slip(n) { pass(n); slip=RATE; still() }
#endif

/* ---- leases, by pairs of a primary n and a peer s ---- */
/* Reduction: the peer promises in the same step. If it did so later its promise would only last longer; a request that is lost is as one
 * that was never made. */
#define g_ask(n,s) (N[n].up && N[n].pri && N[s].up && N[s].sess==n && N[n].asked##s==0 && N[n].lease##s<L)
#define a_ask(n,s) N[n].asked##s=L; N[s].promise=G; N[n].grant##s=1
/* The grant may arrive after its sender has hung up. */
#define g_granted(n,s) (N[n].up && N[n].pri && N[n].grant##s)
#ifdef W_RECEIPT     /* the lease counts from the arrival of the grant */
#define a_granted(n,s) N[n].grant##s=0; N[n].lease##s=L; N[n].asked##s=0
#else
#define a_granted(n,s) N[n].grant##s=0; if :: N[n].lease##s<N[n].asked##s -> N[n].lease##s=N[n].asked##s :: else fi; N[n].asked##s=0
#endif
#define g_session(n,s) (N[n].up && N[s].up && N[n].pri && !N[s].pri && !N[s].refuse && N[s].sess==NOBODY && N[n].ep>=N[s].seen)
#define a_session(n,s) N[s].sess=n; see(s,N[n].ep); N[n].grant##s=0; N[n].asked##s=0
#define g_shrink(n,s) (IDLECAS(n) && N[n].pri && (N[n].cnt&B(s)) && N[s].sess!=n)
#define a_shrink(n,s) put(n,SHRINK,s)
#define g_grow(n,s) (IDLECAS(n) && N[n].pri && !(N[n].ks&B(s)) && N[s].sess==n)
#define a_grow(n,s) N[n].cnt=N[n].cnt|B(s); put(n,GROW,s)

/* ---- who becomes primary ---- */
#define g_hangup(n) (N[n].sess!=NOBODY)
inline a_hangup(n) { hangup(n) }
#define MAYCLAIM(n) (IDLECAS(n) && !N[n].pri && !N[n].refuse && N[n].ke<MAXEP)
#define g_promote(n) (MAYCLAIM(n) && (N[n].ks&B(n)) && (N[n].promise==0 || N[n].ke==N[n].began))
inline a_promote(n) { N[n].refuse=1; hangup(n); put(n,PROMOTE,0) }
#define g_force(n) (MAYCLAIM(n) && !(N[n].ks&B(n)) && N[n].sess==NOBODY && N[n].promise==0)
inline a_force(n) { N[n].refuse=1; N[n].claim=1; put(n,PROMOTE,0) }
#define g_begin(n) (N[n].up && N[n].won && N[n].wait==0)
inline a_begin(n) { N[n].won=0; N[n].refuse=0;
  if :: N[n].seen>N[n].ep -> N[n].ep=0; N[n].gate=0 :: else -> N[n].pri=1; N[n].began=N[n].ep; N[n].cnt=0 fi }

/* ---- faults ---- */
#define g_crash(n) (N[n].up)
inline a_crash(n) {
  if :: N[n].cs==SENT && N[n].zk==0 -> N[n].zk=N[n].ck; N[n].zp=N[n].cp :: else fi;
  demote(n); nocas(n); hangup(n);
  N[n].up=0; N[n].refuse=0; N[n].won=0; N[n].claim=0; N[n].wait=0; N[n].saw=0; N[n].promise=0; N[n].fresh=0; N[n].ke=0; N[n].ks=0; still() }
#define g_start(n) (!N[n].up)
#ifdef W_NOWAIT      /* a restarted node waits for nothing */
inline a_start(n) { N[n].up=1 }
#else
inline a_start(n) { N[n].up=1; N[n].promise=G }
#endif

#define SHOW() printf("record e%d of %d, set %d; up %d%d pri %d%d ep %d%d counted %d,%d lease %d%d promise %d%d look %d%d gate %d%d wait %d%d cas %d%d%d%d\n", \
  R_ep,R_pri,R_set,N[0].up,N[1].up,N[0].pri,N[1].pri,N[0].ep,N[1].ep,N[0].cnt,N[1].cnt,N[0].lease1,N[1].lease0,N[0].promise,N[1].promise, \
  N[0].look,N[1].look,N[0].gate,N[1].gate,N[0].wait,N[1].wait,N[0].ck,N[0].cs,N[1].ck,N[1].cs)
#define STEP(name,n) :: d_step { g_##name(n) -> a_##name(n); printf(#name); printf(" %d  | ",n); SHOW() }
#define WITH(name,n,s) :: d_step { g_##name(n,s) -> a_##name(n,s); printf(#name); printf(" %d %d| ",n,s); SHOW() }
#if NODES==2
#define X(name) STEP(name,0) STEP(name,1)
#define XX(name) WITH(name,0,1) WITH(name,1,0)
#else
#define X(name) STEP(name,0) STEP(name,1) STEP(name,2)
#define XX(name) WITH(name,0,1) WITH(name,1,0) WITH(name,0,2) WITH(name,2,0) WITH(name,1,2) WITH(name,2,1)
#endif
#define INIT(n) N[n].up=1; N[n].seen=1; N[n].fresh=1; N[n].ke=1; N[n].ks=R_set; N[n].sess=0;

active proctype sys() {
  d_step { EACH(INIT) N[0].pri=1; N[0].ep=1; N[0].began=1; N[0].cnt=R_set&~1; N[0].sess=NOBODY }
  do
  :: (SERVE(0) && SERVE(1)) -> assert(!2)
#if NODES==3
  :: (SERVE(0) && SERVE(2)) || (SERVE(1) && SERVE(2)) -> assert(!2)
#endif
  X(land) X(zland) X(ok) X(read) X(look) X(shown)
#if LATE
  X(late)
#ifdef X_FAILEDLOOK
  X(unshown)
#endif
#endif
  X(tick) X(slip)
  XX(ask) XX(granted) XX(session) XX(shrink) XX(grow)
  X(hangup) X(promote) X(begin)
#if FORCE
  X(force)
#endif
#if CRASH
  X(crash) X(start)
#endif
  od
}
