import os; os.environ["TF_CPP_MIN_LOG_LEVEL"]="3"
import sys,time, numpy as np, tensorflow as tf, keras, covkeras as ck
import covkeras.trainer as T
from covkeras.moments.rules import Context
from covkeras.moments.rectifiers import rectify
name,batch,fused=sys.argv[1],int(sys.argv[2]),sys.argv[3]
if len(sys.argv)>4: keras.mixed_precision.set_global_policy(sys.argv[4])
build=getattr(ck.models,name)
def make(obj):
    c=build(); t=ck.CertifiedTrainer(c,obj); t.compile(optimizer=keras.optimizers.SGD(.01,momentum=.9)); return t
if fused=='0': T.fused_rectify=rectify
ts={'plain':make(ck.objectives.GaussianAugmentation(.5)),'cov':make(ck.objectives.CovarianceRadius(.5)),'stop':make(ck.objectives.CovarianceRadius(.5,stop_covariance_gradient=True))}
shape=ts['plain'].classifier.input_shape[1:]
x=tf.random.uniform((batch,*shape)); y=tf.random.uniform((batch,),0,10,tf.int64)
fs={k:tf.function(t.train_step) for k,t in ts.items()}
for f in fs.values(): f((x,y)); f((x,y))
res={k:[] for k in fs}
for r in range(15 if name=='lenet' else 5):
    for k,f in fs.items():
        t=time.perf_counter(); o=f((x,y)); o['loss'].numpy(); res[k].append(time.perf_counter()-t)
r={k:np.median(v) for k,v in res.items()}
print(name,batch,fused,{k:round(v*1e3,1) for k,v in r.items()},{k:round(float(np.median(np.array(res[k])/np.array(res['plain']))),3) for k in r})
